"""The calibration texts: every row can be read, none repeats another, and what accuracy is measured on is never calibrated on."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "calibration"
HELD_OUT = "held-out"
KINDS = ("chat", "code", "instructions", "languages", "prose")

Row = dict[str, Any]

# A word; or one character of a script that puts no spaces between its words.
WORD = re.compile(
    r"[\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]|[^\W\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]+"
)


@pytest.fixture(scope="module")
def files() -> dict[str, list[Row]]:
    return {path.stem: read(path) for path in sorted(FOLDER.glob("*.jsonl"))}


def read(path: Path) -> list[Row]:
    raw = path.read_bytes()
    assert raw.endswith(b"\n")
    assert b"\r" not in raw
    return [json.loads(line) for line in raw.decode("utf-8").removesuffix("\n").split("\n")]


def text_of(row: Row) -> str:
    return str(row["text"]) if "text" in row else "\n".join(message["content"] for message in row["messages"])


def shingles(row: Row, words: int) -> set[tuple[str, ...]]:
    """Every run of so many words that the passage holds."""
    found = WORD.findall(text_of(row).lower())
    return {tuple(found[begin : begin + words]) for begin in range(len(found) - words + 1)}


def test_shingles_see_words_and_characters() -> None:
    assert shingles({"text": "One, two; three"}, 2) == {("one", "two"), ("two", "three")}
    assert shingles({"text": "今天好。"}, 2) == {("今", "天"), ("天", "好")}


def test_there_is_a_file_of_each_kind_and_one_held_out(files: dict[str, list[Row]]) -> None:
    assert set(files) == {*KINDS, HELD_OUT}
    assert sum(map(len, files.values())) >= 300
    for kind in KINDS:
        assert {row["kind"] for row in files[kind]} == {kind}


def test_held_out_texts_are_of_every_kind(files: dict[str, list[Row]]) -> None:
    counted = Counter(row["kind"] for row in files[HELD_OUT])
    assert set(counted) == set(KINDS)
    assert min(counted.values()) >= 5


def test_the_beginning_of_what_is_held_out_is_of_every_kind_as_well(files: dict[str, list[Row]]) -> None:
    """The kinds take turns: short measurements read no further than the beginning."""
    kinds = [row["kind"] for row in files[HELD_OUT]]
    turns = min(Counter(kinds).values())
    assert all(set(kinds[first : first + len(KINDS)]) == set(KINDS) for first in range((turns - 1) * len(KINDS) + 1))


def test_the_readme_counts_what_is_there(files: dict[str, list[Row]]) -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    for stem, rows in files.items():
        (said,) = re.findall(rf"^\| `{stem}\.jsonl` +\| +(\d+) \| +([\d,]+) \| +([\d,]+) \|", readme, re.MULTILINE)
        texts = [text_of(row) for row in rows]
        counts = len(rows), sum(len(text.split()) for text in texts), sum(map(len, texts))
        assert [int(number.replace(",", "")) for number in said] == [
            counts[0],
            round(counts[1], -2),
            round(counts[2], -2),
        ], stem


def test_ids_are_unique(files: dict[str, list[Row]]) -> None:
    counted = Counter(row["id"] for rows in files.values() for row in rows)
    assert [name for name, times in counted.items() if times > 1] == []
    assert all(row["id"].startswith(f"{stem}-") for stem, rows in files.items() for row in rows)


@pytest.mark.parametrize("stem", [*KINDS, HELD_OUT])
def test_every_row_is_a_text_or_a_conversation(files: dict[str, list[Row]], stem: str) -> None:
    for row in files[stem]:
        assert ("text" in row) != ("messages" in row), row["id"]
        if "text" in row:
            assert isinstance(row["text"], str)
            assert len(row["text"].strip()) >= 100, row["id"]
        else:
            assert_conversation(row)


def assert_conversation(row: Row) -> None:
    """A system message or none, then user and assistant in turns, the assistant last: what every chat template takes."""
    messages = row["messages"]
    assert all(set(message) == {"role", "content"} and message["content"].strip() for message in messages), row["id"]
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    assert turns, row["id"]
    assert turns == ["user", "assistant"] * (len(turns) // 2), row["id"]


def test_no_two_passages_share_a_long_run_of_words(files: dict[str, list[Row]]) -> None:
    owner: dict[tuple[str, ...], str] = {}
    shared = []
    for row in (row for rows in files.values() for row in rows):
        for run in shingles(row, 12):
            if owner.setdefault(run, row["id"]) != row["id"]:
                shared.append((owner[run], row["id"], " ".join(run)))
    assert shared == []


def test_held_out_shares_not_even_a_phrase_with_what_is_calibrated_on(files: dict[str, list[Row]]) -> None:
    held_out = {run: row["id"] for row in files[HELD_OUT] for run in shingles(row, 8)}
    shared = [
        (held_out[run], row["id"], " ".join(run))
        for kind in KINDS
        for row in files[kind]
        for run in shingles(row, 8) & held_out.keys()
    ]
    assert shared == []
