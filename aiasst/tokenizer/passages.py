"""Passages in files, to calibrate on and to measure on: texts and conversations, a line each. Knows no token id.

    .jsonl    {"text": "…"}, or {"messages": [{"role": "…", "content": "…"}, …]}, one a line; other keys are left alone
    .xz       at the end of the name: packed

Every error takes its hint from the caller, who knows what else may be given in place of such a file.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from aiasst.errors import ArtifactError
from aiasst.tokenizer.chat_template import Message


@dataclass(frozen=True)
class Passage:
    """One text that belongs together: `messages` where it is a conversation, else `text`."""

    text: str
    """Of a conversation: the contents of its messages, a blank line between them."""
    messages: tuple[Message, ...] = ()


def read_passages(path: Path, hint: str) -> Iterator[Passage]:
    """The passages of a .jsonl file, one after another; lines of blanks are none.

    Raises:
        ArtifactError: a line that is no passage, no UTF-8, a broken .xz.
    """
    with open_text(path, hint) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _passage(line, f"{path}, line {number}", hint)


@contextmanager
def open_text(path: Path, hint: str) -> Iterator[TextIO]:
    """The characters of a file, packed or not; a byte-order mark, which Windows' editors write, is no part of them.

    Raises:
        ArtifactError: as it is read: no UTF-8, a broken .xz.
    """
    packed = path.suffix == ".xz"
    try:
        with lzma.open(path, "rt", encoding="utf-8-sig") if packed else path.open(encoding="utf-8-sig") as file:
            yield file
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path} is not UTF-8 text: {error.reason}", hint) from None
    except (lzma.LZMAError, EOFError):
        raise ArtifactError(f"{path} is not a readable .xz file, or it was cut short", hint) from None


def _passage(line: str, place: str, hint: str) -> Passage:
    try:
        row = json.loads(line.removesuffix("\n"))
    except RecursionError:
        raise ArtifactError(f"{place} is nested too deeply", hint) from None
    except ValueError as error:
        where = f" at column {error.colno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else f": {error}"
        raise ArtifactError(f"{place} is not valid JSON{where}", hint) from None
    if isinstance(row, dict) and isinstance(row.get("text"), str):
        return Passage(row["text"])
    messages = row.get("messages") if isinstance(row, dict) else None
    if isinstance(messages, list) and messages and all(_is_message(message) for message in messages):
        found = tuple(Message(message["role"], message["content"]) for message in messages)
        return Passage("\n\n".join(message.content for message in found), found)
    raise ArtifactError(f"{place} has neither a text nor messages with role and content", hint)


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("role", "content"))
