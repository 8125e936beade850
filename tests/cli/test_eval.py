"""`aiasst eval` as a person or a script starts it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

STABLE = (
    "perplexity_before", "perplexity_after", "kl_mean", "kl_p999", "top1_agreement", "retained_percent", "bytes",
    "bits_per_weight",
)  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "prose.txt"
    path.write_text("Once upon a time there was a king who had three daughters. " * 40, encoding="utf-8")
    return path


def evaluate(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "aiasst", "eval", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_json_has_the_stable_names_at_the_top(story: Path, text: Path) -> None:
    shown = evaluate(story, "--against", story, "--text", text, "--tokens", 256, "--json", "--quiet")
    assert (shown.returncode, shown.stderr) == (0, "")
    card = json.loads(shown.stdout)
    assert set(STABLE) <= card.keys()
    assert (card["kl_mean"], card["top1_agreement"], card["retained_percent"]) == (0, 1, 100)
    assert card["perplexity_before"] == card["perplexity_after"]
    assert card["text"]["tokens"] == 256


def test_a_card_is_shown_kept_and_inspected(story: Path, text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(story, folder)
    shown = evaluate(folder, "--text", text, "--tokens", 256, "--write")
    assert shown.returncode == 0
    assert "perplexity" in shown.stdout
    assert "evaluate done" in shown.stderr
    assert "256 tokens of prose.txt" in shown.stdout
    assert "card.json and CARD.md" in shown.stderr
    assert (folder / "CARD.md").read_text(encoding="utf-8").startswith("# Accuracy of mine\n")
    inspected = subprocess.run(
        [sys.executable, "-m", "aiasst", "inspect", str(folder), "--check"], capture_output=True, text=True, check=True
    ).stdout
    assert "Accuracy" in inspected
    assert "perplexity" in inspected
    assert "every hash is right" in inspected


def test_another_machines_config_is_refused(story: Path, text: Path, tmp_path: Path) -> None:
    config = tmp_path / "device.json"
    profile = [sys.executable, "-m", "aiasst", "profile", "--quick", "--quiet", "-o", str(config)]
    subprocess.run(profile, capture_output=True, check=True)
    arguments = (story, "--text", text, "--tokens", 256, "--config", config, "--json")
    assert json.loads(evaluate(*arguments).stdout)["provider"] == "cpu"
    device = json.loads(config.read_text(encoding="utf-8"))
    device["hardware"]["machine_id"] = "0" * len(device["hardware"]["machine_id"])
    config.write_text(json.dumps(device), encoding="utf-8")
    assert "another machine" in evaluate(*arguments).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--text", "absent.txt"), "there is no text absent.txt"),
        (("--task", "sts"), "add --data FILE.csv"),
        (("--data", "a.csv"), "add --task sts"),
        (("--task", "sts", "--data", "a.csv"), "--task is for encoders"),
        (("--against", "absent"), "there is no folder absent"),
        (("--tokens", "3"), "too few"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(story: Path, arguments: tuple[str, ...], message: str) -> None:
    ended = evaluate(story, *arguments)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert message in " ".join(ended.stderr.split())
    assert "Traceback" not in ended.stderr
