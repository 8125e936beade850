"""Passages of a .jsonl file: what is read of a row, and what is said of one that is none."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest

from aiasst.errors import ArtifactError
from aiasst.tokenizer import Message
from aiasst.tokenizer.passages import Passage, open_text, read_passages

CHAT = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day", "name": "x"}]


@pytest.mark.parametrize("packed", [False, True])
def test_texts_and_conversations_are_read(tmp_path: Path, packed: bool) -> None:
    rows = [{"id": "a", "text": "é\nrain"}, {"messages": CHAT}, {"text": ""}]
    content = b"\xef\xbb\xbf" + "\n \n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
    path = tmp_path / ("rows.jsonl.xz" if packed else "rows.jsonl")
    path.write_bytes(lzma.compress(content) if packed else content)
    assert list(read_passages(path, "hint")) == [
        Passage("é\nrain"),
        Passage("Hello\n\nGood day", (Message("user", "Hello"), Message("assistant", "Good day"))),
        Passage(""),
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"text": ', "line 3 is not valid JSON at column 10: Expecting value"),
        ('{"n": ' + "9" * 5000 + "}", "line 3 is not valid JSON: "),
        ("[" * 100_000, "line 3 is nested too deeply"),
        ('["text"]', "line 3 has neither a text nor messages"),
        ('{"text": 3}', "line 3 has neither"),
        ('{"messages": []}', "line 3 has neither"),
        ('{"messages": {"role": "user", "content": "a"}}', "line 3 has neither"),
        ('{"messages": [{"role": "user", "content": "a"}, {"role": "user"}]}', "line 3 has neither"),
        ('{"messages": ["user"]}', "line 3 has neither"),
    ],
)
def test_a_row_that_is_no_passage_is_named(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"text": "fine"}}\n\n{line}\n', encoding="utf-8")
    rows = read_passages(path, "give another")
    assert next(rows) == Passage("fine")
    with pytest.raises(ArtifactError) as caught:
        next(rows)
    assert f"{path}, {words}" in caught.value.message
    assert caught.value.hint == "give another"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", "fünf".encode("latin-1"), "is not UTF-8 text: invalid"),
        ("a.xz", b"no archive at all", "is not a readable .xz file"),
        ("a.xz", lzma.compress(b"a story " * 999)[:60], "is not a readable .xz file"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtifactError) as caught, open_text(tmp_path / name, "give another") as file:
        file.read()
    assert words in caught.value.message
    assert caught.value.hint == "give another"
