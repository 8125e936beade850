"""Nothing phones home: what runs a model opens no connection at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BLOCKED = """
import socket, sys

class Refused(socket.socket):
    def connect(self, *_):
        raise AssertionError("a connection was opened")
    connect_ex = bind = sendto = connect

socket.socket = Refused
socket.getaddrinfo = Refused.connect
from aiasst.cli.app import main
sys.argv = ["aiasst", *sys.argv[1:]]
main()
"""


def start(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BLOCKED, *arguments]
    return subprocess.run(command, capture_output=True, text=True, input=stdin, check=False)


def test_the_block_blocks() -> None:
    code = BLOCKED.split("from aiasst")[0] + "socket.create_connection(('127.0.0.1', 9))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "a connection was opened" in ended.stderr


def test_chat_opens_no_connection() -> None:
    ended = start("chat", "--max-tokens", "4", stdin="Once upon a time\n")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip()


def test_run_opens_no_connection(tmp_path: Path) -> None:
    from aiasst.artifacts.shipped import default_model

    (tmp_path / "prompts.jsonl").write_text('{"prompt": "The king", "max_tokens": 4}\n')
    files = (str(tmp_path / "prompts.jsonl"), "-o", str(tmp_path / "answers.jsonl"))
    ended = start("run", str(default_model()), *files)
    assert ended.returncode == 0, ended.stderr
    assert "text" in (tmp_path / "answers.jsonl").read_text()


@pytest.mark.parametrize(
    "arguments", [("profile", "--quick"), ("advise", "--device", "n100-mini-pc-16gb"), ("--help",)]
)
def test_the_others_neither(arguments: tuple[str, ...]) -> None:
    assert start(*arguments).returncode == 0


def test_convert_of_a_local_folder_opens_no_connection(tmp_path: Path) -> None:
    from aiasst.artifacts.shipped import story_checkpoint

    ended = start("convert", str(story_checkpoint()), "-o", str(tmp_path / "story"), "-q")
    assert ended.returncode == 0, ended.stderr
