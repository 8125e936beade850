"""The program as a person starts it: help, exit codes, where words go."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from aiasst.cli import app

COMMANDS = ("advise", "convert", "quantize", "profile", "run", "chat", "search", "eval", "bench", "inspect")


def start(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "aiasst", *arguments], capture_output=True, text=True, input=stdin, check=False
    )


def test_help_names_the_commands_in_pipeline_order() -> None:
    rows = [
        line.split()[1]
        for line in start("--help").stdout.splitlines()
        if line.startswith("│ ") and len(line.split()) > 2
    ]
    assert [name for name in rows if name in COMMANDS] == list(COMMANDS)


def test_the_shell_completes_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_AIASST_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "aiasst qu")
    monkeypatch.setenv("COMP_CWORD", "1")
    script = "import sys; sys.argv = ['aiasst']; from aiasst.cli.app import main; main()"
    completed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert completed.stdout.split() == ["quantize"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_an_example(name: str) -> None:
    shown = start(name, "--help")
    assert shown.returncode == 0
    assert f"aiasst {name}" in shown.stdout.split("Options")[-1]


def test_version() -> None:
    assert start("--version").stdout.startswith("aiasst ")


def test_wrong_usage_exits_with_two() -> None:
    assert start("nonsense").returncode == 2
    assert start("inspect").returncode == 2


def test_an_error_is_words_on_stderr_and_exit_one(tmp_path: Path) -> None:
    ended = start("inspect", str(tmp_path / "absent"))
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert "error: there is no folder" in ended.stderr
    assert "try: convert a checkpoint first" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_debug_shows_the_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIASST_DEBUG", "1")
    assert "Traceback" in start("inspect", str(tmp_path / "absent")).stderr


def test_an_interrupt_exits_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "app", interrupted)
    with pytest.raises(SystemExit) as exit_:
        app.main()
    assert exit_.value.code == 130
    assert "interrupted" in capsys.readouterr().err


def test_inspect_of_the_shipped_model() -> None:
    from aiasst.artifacts.shipped import default_model

    folder = str(default_model())
    shown = start("inspect", folder, "--weights", "--check")
    assert shown.returncode == 0
    assert "layers.7.down_proj.weight" in shown.stdout
    assert "float32, 8.2 kB a token" in shown.stdout
    assert json.loads(start("inspect", folder, "--json").stdout)["task"] == "text-generation"
