"""`aiasst bench` as a person starts it, with the story model; what it prints and refuses, never how fast it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aiasst.artifacts.device import save_device_config
from aiasst.profile import quick_config

SMALL = ("--seconds", "0.1", "--prompt-tokens", "16", "--sequences", "1,2")


def start(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "aiasst", "bench", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"COLUMNS": "80"},
    )


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = quick_config()
    threads = found.decisions.threads.model_copy(update={"value": 1})
    decisions = found.decisions.model_copy(update={"threads": threads})
    file = tmp_path_factory.mktemp("bench") / "device.json"
    save_device_config(file, found.model_copy(update={"decisions": decisions}))
    return file


def test_json_has_the_names_that_stay(story: Path, config: Path, tmp_path: Path) -> None:
    plot = tmp_path / "speed.png"
    ended = start(story, *SMALL, "--config", config, "--json", "--quiet", "--plot", plot)
    assert (ended.returncode, ended.stderr) == (0, "")
    found = json.loads(ended.stdout)
    assert (found["threads"], found["prompt_tokens"], found["against"]) == (1, 16, None)
    numbers = (
        "prefill_tokens_per_second", "ttft_ms", "inter_token_ms_p50", "inter_token_ms_p99", "load_seconds",
        "peak_rss_bytes", "bandwidth_share",
    )  # fmt: skip
    assert all(found[name] > 0 for name in numbers)
    assert all(set(found[name]) == {"1", "2"} for name in ("decode_tokens_per_second", "engine_overhead_share"))
    # Every weight of the story model but its norms is in products, the shared head among them.
    assert 7_000_000 < found["weight_bytes_per_token"] < 8_000_000
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_the_page_fits_and_says_what_was_obeyed(story: Path, config: Path) -> None:
    ended = start(story, *SMALL, "--config", config)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    for word in ("read a prompt of 16", "decode, 2 at once", "first token", "bandwidth", "load", "memory"):
        assert word in ended.stdout
    assert any("█" in line for line in lines)
    said = [line for line in ended.stderr.splitlines() if str(config) in line]
    assert len(said) == 1 and "threads 1" in said[0]


@pytest.mark.parametrize(
    ("options", "words", "hint"),
    [
        (("--sequences", "1,x"), "no list of numbers", "--sequences 1,8"),
        (("--plot", "a.pdf"), "no PNG", ".png"),
        (("--peer-model", "a.gguf"), "no peer", "--against llama.cpp"),
        (("--against", "llama.cpp"), "nothing is named", "benchmarks/peers/llama_cpp_gguf.py"),
        (("--against", "llama.cpp", "--peer-model", "absent.gguf"), "no file absent.gguf", "GGUF"),
        (("--against", "abacus", "--peer-model", "a.gguf"), "no runtime", "llama.cpp"),
    ],
)
def test_wrong_options_are_refused_before_the_work(
    story: Path, options: tuple[str, ...], words: str, hint: str
) -> None:
    ended = start(story, *options)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert words in ended.stderr
    assert hint in ended.stderr.replace("\n", "")
