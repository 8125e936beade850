"""`aiasst chat` as a person starts it, with the story model: in a pipe, and at a terminal of its own."""

from __future__ import annotations

import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiasst import sensors
from aiasst.artifacts.device import LimitDecision, save_device_config
from aiasst.cli import chat
from aiasst.engine import pacing
from aiasst.profile import quick_config
from aiasst.sensors import Found, Place, Sensor

BEGIN = "Once upon a time there was a little girl who"


def start(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "aiasst", "chat", *arguments], capture_output=True, text=True, input=stdin, check=False
    )


def test_a_pipe_gets_the_answer_alone(story: Path) -> None:
    ended = start("--max-tokens", "12", "--seed", "7", stdin=BEGIN + "\n")
    assert ended.returncode == 0, ended.stderr
    assert len(ended.stdout.split()) > 3
    assert ">>>" not in ended.stdout
    assert BEGIN not in ended.stdout
    assert "manner of old books" in ended.stderr
    again = start(str(story), "--max-tokens", "12", "--seed", "7", "--quiet", stdin=BEGIN)
    assert again.stdout == ended.stdout
    assert again.stderr == ""


def test_several_lines_are_several_turns(story: Path) -> None:
    ended = start("--max-tokens", "5", "--temperature", "0", "--json", stdin=f"{BEGIN}\nThen\n")
    said = json.loads(ended.stdout)
    assert (said["mode"], said["system"]) == ("completion", None)
    assert [turn["prompt"] for turn in said["turns"]] == [BEGIN, "Then"]
    assert said["turns"][1]["usage"]["cached_tokens"] >= said["turns"][0]["usage"]["prompt_tokens"]


def test_a_conversation_goes_on_after_a_restart_without_reading_it_again(story: Path, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    options = ("--max-tokens", "20", "--temperature", "0", "--json", "--resume", str(path))
    first = start(*options, stdin=f"{BEGIN} went into the wood with her brother and a basket\n")
    assert first.returncode == 0, first.stderr
    assert "A new conversation" in first.stderr and "beside it (talk.json.kv)" in first.stderr
    before = json.loads(first.stdout)["turns"][0]["usage"]
    second = start(*options, stdin="Then\n")
    turns = json.loads(second.stdout)["turns"]
    assert [turn["usage"] is None for turn in turns] == [True, False]
    assert turns[1]["usage"]["cached_tokens"] >= before["prompt_tokens"] + before["completion_tokens"] - 2
    (tmp_path / "talk.json.kv").write_bytes(b"damaged")
    third = start(*options, stdin="Then\n")
    assert third.stderr.count("read anew: talk.json.kv is damaged") == 1
    assert json.loads(third.stdout)["turns"][2]["usage"]["cached_tokens"] == 0
    assert len(json.loads(path.read_text(encoding="utf-8"))["turns"]) == 3


def test_an_answer_is_held_to_a_schema_a_regex_or_a_grammar(tmp_path: Path) -> None:
    schema, grammar = tmp_path / "dog.json", tmp_path / "sum.lark"
    schema.write_text(
        '{"type": "object", "properties": {"dog": {"type": "boolean"}}, "required": ["dog"], "additionalProperties": false}',
        encoding="utf-8",
    )
    grammar.write_text('start: NUMBER "+" NUMBER\nNUMBER: /[0-9]/\n', encoding="utf-8")
    for arguments, pattern in (
        (("--json-schema", str(schema)), r'\{\s*"dog"\s*:\s*(true|false)\s*\}'),
        (("--grammar", str(grammar)), r"\d\+\d"),
        (("--regex", "(wolf|fox) [0-9]{2}"), r"(wolf|fox) \d\d"),
    ):
        ended = start(*arguments, "--quiet", "--seed", "3", stdin=BEGIN)
        assert ended.returncode == 0, ended.stderr
        assert re.fullmatch(pattern, ended.stdout.strip())


@pytest.mark.parametrize(
    ("arguments", "stdin", "words"),
    [
        ((), "word " * 1100, "the model's context is 1024 tokens"),
        ((), "/nonsense\n", "there is no command /nonsense"),
        (("--system", "Be kind."), "Hello", "no chat template"),
        (("--min-p", "2"), "Hello", "min_p is 2.0"),
        (("absent",), "Hello", "there is no folder absent"),
        (("--regex", "("), "Hello", "the regular expression cannot be used: unclosed group"),
        (("--regex", "a", "--grammar", "absent"), "Hello", "exclude each other"),
        (("--json-schema", "absent"), "Hello", "there is no JSON schema at absent"),
    ],
)
def test_a_failure_is_words_and_exit_one(story: Path, arguments: tuple[str, ...], stdin: str, words: str) -> None:
    ended = start(*arguments, stdin=stdin)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr


class Terminal:
    """A program at a terminal of its own."""

    def __init__(self, command: list[str]) -> None:
        import pty

        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "dumb"
            os.execv(command[0], command)
        self.shown = ""
        self._seen = 0

    def type(self, text: str) -> None:
        os.write(self.descriptor, text.encode())

    def press(self, key: str) -> None:
        """As a person does: not in the instant between the prompt and the wait for keys, when the system swallows it."""
        time.sleep(0.5)
        self.type(key)

    def press_until(self, key: str, pattern: str) -> None:
        """Press again where nothing happens: on a busy machine that instant lasts longer."""
        for _ in range(5):
            self.press(key)
            if self._shows(pattern, seconds=6):
                break
        self.wait_for(pattern)

    def _shows(self, pattern: str, seconds: float) -> bool:
        limit = time.monotonic() + seconds
        while re.search(pattern, self.shown[self._seen :]) is None:
            ready, _, _ = select.select([self.descriptor], [], [], max(0.0, limit - time.monotonic()))
            if not ready:
                return False
            self.shown += os.read(self.descriptor, 4096).decode(errors="replace")
        return True

    def wait_for(self, pattern: str) -> str:
        """Read until `pattern` appears after what was waited for before."""
        limit = time.monotonic() + 30
        while (found := re.search(pattern, self.shown[self._seen :])) is None:
            ready, _, _ = select.select([self.descriptor], [], [], limit - time.monotonic())
            assert ready, self.shown
            self.shown += os.read(self.descriptor, 4096).decode(errors="replace")
        self._seen += found.end()
        return found.group()

    def close(self) -> int:
        try:
            while os.read(self.descriptor, 4096):
                pass
        except OSError:  # the other end is closed
            pass
        os.close(self.descriptor)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def terminal(story: Path) -> Iterator[Terminal]:
    window = Terminal([sys.executable, "-m", "aiasst", "chat", "--seed", "3", "--max-tokens", "900"])
    yield window
    try:
        os.kill(window.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def test_at_a_terminal(terminal: Terminal, tmp_path: Path) -> None:
    terminal.wait_for("manner of old books")
    terminal.wait_for(">>> ")
    terminal.type("Once upon a time\n")
    terminal.wait_for(r"Once upon a time[^>]{40}")
    terminal.type("\x03")  # in the middle of the answer
    terminal.wait_for(">>> ")
    terminal.type("/stats\n")
    terminal.wait_for(r"\(cancelled\)")
    terminal.wait_for(">>> ")
    terminal.type(f"/save {tmp_path / 'chat.json'}\n")
    terminal.wait_for("Saved 1 turn")
    terminal.wait_for(">>> ")
    terminal.press_until("\x03", "Ctrl-C again")
    terminal.wait_for(">>> ")
    terminal.press("\x04")
    assert terminal.close() == 0
    assert "Traceback" not in terminal.shown
    (turn,) = json.loads((tmp_path / "chat.json").read_text())["turns"]
    assert turn["finish_reason"] == "cancelled"


def test_json_is_for_pipes(story: Path) -> None:
    window = Terminal([sys.executable, "-m", "aiasst", "chat", "--json"])
    window.wait_for("for pipes")
    assert window.close() == 1


def test_pauses_for_a_limit_are_told_in_a_line(
    story: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readings = iter([90.0] * 4)

    def cooling(_: Place | None) -> Found:
        return Found((Sensor("thermal_zones", "temperature", "cpu-thermal", lambda: next(readings, 40.0)),))

    monkeypatch.setattr(sensors, "find", cooling)
    monkeypatch.setattr(pacing, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Once upon a time\n"))
    found = quick_config()
    limit = LimitDecision(value=80.0, reason="a test")
    decisions = found.decisions.model_copy(update={"temperature_limit_celsius": limit})
    save_device_config(tmp_path / "device.json", found.model_copy(update={"decisions": decisions}))
    chat.command(story, tmp_path / "device.json", max_tokens=20, seed=1)
    told = capsys.readouterr()
    assert told.out.strip()
    assert "s of pauses kept the limits of the device config." in " ".join(told.err.split())
