"""Texts to measure on: every kind of file, in part and whole, and what is said of one that is none."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import numpy as np
import pytest

from aiasst.artifacts.shipped import HELD_OUT_NAME
from aiasst.errors import ArtifactError
from aiasst.evaluate.texts import encode_passage, held_out_path, read_passages, read_text
from aiasst.tokenizer import Message, Tokenizer
from tests import checkpoints

STORY = "Once upon a time there was a miller, and the miller had three sons. " * 200
CHAT = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    checkpoints.write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


def write_rows(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("tokens", [1, 100, 5_000, None, 1_000_000])
def test_a_part_of_a_text_is_the_beginning_of_the_whole(
    tmp_path: Path, tokenizer: Tokenizer, tokens: int | None, packed: bool
) -> None:
    path = tmp_path / ("story.txt.xz" if packed else "story.txt")
    path.write_bytes(lzma.compress(STORY.encode()) if packed else STORY.encode())
    whole = tokenizer.encode(STORY)
    found = read_text(path, tokenizer, tokens)
    assert found.name == path.name
    assert found.ids.dtype == np.int64
    assert found.ids.tolist() == whole[:tokens]


def test_rows_begin_and_end_as_the_tokenizer_says(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [{"id": "a", "kind": "prose", "text": "the rain"}, {"messages": CHAT}]
    found = read_text(write_rows(tmp_path / "rows.jsonl", rows), tokenizer).ids.tolist()
    first, second = tokenizer.encode("the rain"), tokenizer.encode("Hello\n\nGood day")
    assert found == [*first, checkpoints.EOS, *second, checkpoints.EOS]
    assert found[0] == checkpoints.BOS
    assert found.count(checkpoints.BOS) == 2


def test_messages_are_rendered_where_there_is_a_template(tmp_path: Path) -> None:
    checkpoints.write_tokenizer(tmp_path, chat_template=True)
    tokenizer = Tokenizer.load(tmp_path)
    (passage,) = read_passages(write_rows(tmp_path / "rows.jsonl", [{"messages": CHAT}]))
    assert passage.messages[1] == Message("assistant", "Good day")
    assert tokenizer.decode(encode_passage(passage, tokenizer)) == "<user>Hello\n<assistant>Good day\n"


def test_the_same_text_has_the_same_hash_whatever_its_file(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text("the rain", encoding="utf-8")
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfthe rain and the sun")
    count = len(tokenizer.encode("the rain"))
    first, second = (read_text(tmp_path / name, tokenizer, count) for name in ("a.txt", "b.txt"))
    assert first.sha256 == second.sha256
    assert read_text(tmp_path / "b.txt", tokenizer).sha256 != first.sha256


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.txt", None, "there is no text"),
        ("text.pdf", b"", "no kind of text"),
        ("latin.txt", b"\xff\xfe\xe9", "not UTF-8"),
        ("latin.jsonl", b"\xff\xfe\xe9", "not UTF-8"),
        ("torn.txt.xz", lzma.compress(STORY.encode())[:60], "cut short"),
        ("none.jsonl.xz", b"no archive at all", "cut short"),
        ("broken.jsonl", b'{"text": "a"}\n\n{"text": ', "line 3 is not valid JSON"),
        ("list.jsonl", b"[1]", "line 1 has neither"),
        ("other.jsonl", b'{"prompt": "a"}', "line 1 has neither"),
        ("number.jsonl", b'{"text": 3}', "line 1 has neither"),
        ("turn.jsonl", b'{"messages": [{"role": "user", "content": "a"}, {"role": 1}]}', "line 1 has neither"),
    ],
)
def test_what_is_no_text_is_refused(
    tmp_path: Path, tokenizer: Tokenizer, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        read_text(tmp_path / name, tokenizer)


def test_an_installation_without_the_held_out_text_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiasst.evaluate.texts.data_folder", lambda name: tmp_path)
    with pytest.raises(ArtifactError, match="lacks"):
        held_out_path()
    (tmp_path / HELD_OUT_NAME).touch()
    assert held_out_path().name == HELD_OUT_NAME
