"""`aiasst bench` as a person starts it, with the story model; what it prints and refuses, never how fast it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from aiasst.artifacts.device import save_device_config
from aiasst.bench.operators import Breakdown, Row
from aiasst.bench.readings import Change, Energy, Readings, Throttling
from aiasst.bench.report import Part, Report, Trace
from aiasst.cli import bench
from aiasst.profile import quick_config
from tests.bench.test_drawing import REPORT

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
    assert found["trace"] is None
    # Null where the machine tells nothing, and then the reason; never both.
    energy = found["energy"]
    assert (
        (energy["joules_per_token"] is None) == (energy["tokens_per_joule"] is None) == (energy["reason"] is not None)
    )
    for name in ("temperature_celsius", "frequency_mhz"):
        assert (found[name]["after"] is None) == (found[name]["reason"] is not None)
    assert (found["throttling"]["seen"] is None) == (found["throttling"]["reason"] is not None)


def test_the_page_fits_and_says_what_was_obeyed(story: Path, config: Path) -> None:
    ended = start(story, *SMALL, "--config", config)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    for word in ("read a prompt of 16", "decode, 2 at once", "first token", "bandwidth", "load", "memory"):
        assert word in ended.stdout
    for word in ("energy", "temperature", "clock", "throttling"):
        assert any(line.strip().startswith(word) for line in lines)
    assert any("█" in line for line in lines)
    said = [line for line in ended.stderr.splitlines() if str(config) in line]
    assert len(said) == 1 and "threads 1" in said[0]


def test_a_step_is_taken_apart(story: Path, config: Path, tmp_path: Path) -> None:
    file = tmp_path / "steps.json"
    ended = start(story, *SMALL, "--config", config, "--trace", file, "--json")
    assert ended.returncode == 0, ended.stderr
    assert f"Trace: {file}; open it at chrome://tracing or with Perfetto." in ended.stderr
    found = json.loads(ended.stdout)["trace"]
    assert found["file"] == str(file)
    assert [(part["work"], part["sequences"]) for part in found["parts"]] == [
        ("decode", 1),
        ("decode", 2),
        ("prefill", 1),
    ]
    for part in found["parts"]:
        rows = {(row["operator"], row["role"]): row for row in part["rows"]}
        for role in ("gate_up", "down", "qkv", "o", "lm_head"):
            assert rows["MatMulNBits", role]["gigabytes_per_second"] > 0
        for other in (("GroupQueryAttention", "attention"), ("between operators, and the profiler", "onnxruntime")):
            assert rows[other]["share"] > 0
        assert sum(row["share"] for row in part["rows"]) == pytest.approx(1, abs=0.01)
        assert part["times_unprofiled"] > 0
    assert len(json.loads(file.read_text(encoding="utf-8"))["traceEvents"]) > 1000
    again = start(story, *SMALL, "--trace", file)
    assert (again.returncode, again.stdout) == (1, "")
    assert "already exists" in again.stderr and "--force" in again.stderr


def report(readings: Readings) -> Report:
    return replace(REPORT, readings=readings, trace=Trace("steps.json", (Part("decode", 1, 1, BREAKDOWN, 1.2),)))


BREAKDOWN = Breakdown(
    8,
    2.0,
    (
        Row("MatMulNBits", "gate_up", 8, 1.5, 0.75, 15.0),
        Row("Add", "other", 2, 0.01, 0.005, None),
        Row("Cast", "lengths", 2, 0.01, 0.005, None),
        Row("outside of the session", "python", 0, 0.48, 0.24, None),
    ),
)
HOT = Readings(
    Energy(0.02, {1: 0.75, 8: 0.25}, "processor packages and memory, by RAPL", ""),
    Change(45.0, 91.0, "the processor, by hwmon", ""),
    Change(4e9, 2.5e9, "all cores", ""),
    Throttling(3, ("under-voltage",), ""),
)


def test_what_the_machine_tells_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    bench._show(report(HOT))
    bench._remark(report(HOT), None, None, None)
    told = capsys.readouterr()
    words = " ".join(told.out.split())
    assert "20 mJ (50 tokens a joule) a token read" in words
    assert "0.75 J (1.33 tokens a joule) a token written, 1 at once" in words
    assert "45 °C before, 91 °C after (the processor, by hwmon)" in words
    assert "4.00 GHz before, 2.50 GHz after" in words
    assert "3 events in the meantime, under-voltage" in words
    assert "Where a decode step goes, 1 at once" in words
    assert "2.00 ms a step with the profiler on, 1.20 times as long as without it" in words
    assert "MatMulNBits gate_up 8 1.500 75.0% 15.0" in words
    assert "2 more kinds 4 0.020 1.0%" in words
    assert "The machine was throttled" in told.err
    document = bench.document(report(HOT))
    assert document["energy"]["joules_per_token"] == {"prefill": 0.02, "decode": {"1": 0.75, "8": 0.25}}
    assert document["energy"]["tokens_per_joule"]["decode"] == {"1": 1.333, "8": 4.0}
    assert document["frequency_mhz"]["before"] == 4000.0


@pytest.mark.parametrize(
    ("options", "words", "hint"),
    [
        (("--sequences", "1,x"), "no list of numbers", "--sequences 1,8"),
        (("--plot", "a.pdf"), "no PNG", ".png"),
        (("--trace", "absent/a.json"), "no folder absent", "make it"),
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
