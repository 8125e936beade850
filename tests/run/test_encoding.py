"""Encoding a file of texts: every row once, in its order, resumable, vectors in lines or in a .npy file."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aiasst.artifacts.encoding import Encoding
from aiasst.artifacts.model_folder import ModelFolder
from aiasst.convert import convert
from aiasst.engine.encode import Encoder
from aiasst.errors import ArtifactError, PromptError, UsageError
from aiasst.progress import Progress
from aiasst.run import encode_file, encoding, load
from aiasst.run.prompts import BadRow
from aiasst.run.texts import TextReader, TextRow
from tests import checkpoints

ROWS: list[dict[str, Any]] = [
    {"id": "a", "text": "the cat sat on the mat"},
    {"id": 2, "text": "in"},
    {"text": "without an id, and rather longer than the others are"},
    {"id": "d", "text": "naïve \x85 text\u2028of two lines"},
    {"id": "e", "text": "rain"},
]


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    folder = tmp_path_factory.mktemp("bert")
    return convert(checkpoints.build("bert", folder / "checkpoint"), folder / "bert")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def stop(event: Progress) -> None:
    """An interruption after the first window."""
    if event.stage == "encode":
        raise KeyboardInterrupt


def test_vectors_in_lines_are_those_of_the_engine(bert: ModelFolder, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    summary = encode_file(bert, texts, out)
    assert (summary.rows, summary.errors, summary.cut, summary.earlier) == (5, 0, 0, 0)
    found = lines_of(out)
    assert [line["id"] for line in found] == ["a", 2, 3, "d", "e"]
    assert [line["line"] for line in found] == [1, 2, 3, 4, 5]
    encoder = load(bert)
    assert isinstance(encoder, Encoder)
    expected = encoder.encode([row["text"] for row in ROWS])
    assert np.array_equal(np.array([line["vector"] for line in found], np.float32), expected)


def test_vectors_in_a_file_of_numpy(bert: ModelFolder, texts: Path, tmp_path: Path) -> None:
    encode_file(bert, texts, tmp_path / "out.jsonl")
    encode_file(bert, texts, tmp_path / "v.npy")
    ids = lines_of(tmp_path / "v.ids.jsonl")
    assert ids[0] == {"id": "a", "line": 1, "row": 0}
    assert [line["row"] for line in ids] == [0, 1, 2, 3, 4]
    vectors = np.load(tmp_path / "v.npy", allow_pickle=False)
    expected = [line["vector"] for line in lines_of(tmp_path / "out.jsonl")]
    assert np.array_equal(vectors, np.array(expected, np.float32))


@pytest.mark.parametrize("name", ["out.jsonl", "out.npy"])
def test_an_interrupted_job_goes_on(
    name: str, bert: ModelFolder, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / f"whole{Path(name).suffix}"
    encode_file(bert, texts, whole)
    monkeypatch.setattr(encoding, "WINDOW_ROWS", 2)
    out = tmp_path / name
    with pytest.raises(KeyboardInterrupt):
        encode_file(bert, texts, out, progress=stop)
    told = out if out.suffix == ".jsonl" else out.with_suffix(".ids.jsonl")
    assert len(lines_of(told)) == 2
    # As a process that was killed while it wrote a window leaves it: the line of one row more, and half of another.
    if out.suffix == ".npy":
        with told.open("ab") as torn:
            torn.write(b'{"id": 3, "li')
    summary = encode_file(bert, texts, out)
    assert (summary.rows, summary.earlier, summary.errors) == (5, 2, 0)
    expected = whole if out.suffix == ".jsonl" else whole.with_suffix(".ids.jsonl")
    assert told.read_bytes() == expected.read_bytes()
    if out.suffix == ".npy":
        assert np.array_equal(np.load(out), np.load(whole))
    assert encode_file(bert, texts, out).earlier == 5


def test_lines_that_were_told_of_only_in_part_are_computed_again(
    bert: ModelFolder, texts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "v.npy"
    encode_file(bert, texts, out)
    whole, told = np.load(out), (tmp_path / "v.ids.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "v.ids.jsonl").write_bytes(b"".join(told[:3]))
    assert encode_file(bert, texts, out).earlier == 3
    assert np.array_equal(np.load(out), whole)
    assert (tmp_path / "v.ids.jsonl").read_bytes() == b"".join(told)


def test_bad_rows_get_errors_and_the_others_go_on(bert: ModelFolder, tmp_path: Path) -> None:
    bad = [
        '{"id": "a", "text": "rain"}', "{broken", '{"id": "a", "text": "again"}', '{"id": "c", "text": 3}',
        '{"id": "d", "text": "x", "pair": "y"}', '{"id": "e", "text": "x", "colour": "red"}', '{"id": "f", "text": "sun"}',
    ]  # fmt: skip
    summary = encode_file(bert, io.BytesIO("\n".join(bad).encode()), tmp_path / "v.npy")
    assert (summary.rows, summary.errors) == (7, 5)
    found = lines_of(tmp_path / "v.ids.jsonl")
    assert [line.get("row") for line in found] == [0, None, None, None, None, None, 1]
    said = [line["error"]["message"] for line in found if "error" in line]
    for words, message in zip(
        ("not valid JSON", "an earlier row has the id", "'text'", "not a pair", "colour"), said, strict=True
    ):
        assert words in message
    assert np.load(tmp_path / "v.npy").shape == (2, 64)


def test_what_is_cut_is_told(bert: ModelFolder, texts: Path) -> None:
    short = replace(bert, manifest=bert.manifest.model_copy(update={"encoding": Encoding(max_tokens=12)}))
    said: list[str] = []
    summary = encode_file(short, texts, said.append)
    found = [json.loads(line) for line in said]
    assert summary.cut == 3
    assert ["cut_from" in line for line in found] == [True, False, True, True, False]
    assert found[0]["cut_from"] > 12


def test_jobs_and_files_of_others_are_refused(bert: ModelFolder, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    encode_file(bert, texts, out)
    with pytest.raises(ArtifactError, match=r"top is another \(None, now 3\)"):
        encode_file(bert, texts, out, top=3)
    (tmp_path / "mine.npy").write_bytes(b"mine")
    with pytest.raises(ArtifactError, match=r"exists and mine\.ids\.jsonl does not"):
        encode_file(bert, texts, tmp_path / "mine.npy")
    assert (tmp_path / "mine.npy").read_bytes() == b"mine"
    with pytest.raises(ArtifactError, match="is the file of texts"):
        encode_file(bert, texts, texts)
    classifier = replace(bert, manifest=bert.manifest.model_copy(update={"task": "text-classification"}))
    with pytest.raises(UsageError, match="it makes no vectors"):
        encode_file(classifier, texts, tmp_path / "labels.npy")
    assert not (tmp_path / "labels.npy").exists()


def test_restart_begins_anew(bert: ModelFolder, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "v.npy"
    encode_file(bert, texts, out)
    texts.write_text(json.dumps(ROWS[0]), encoding="utf-8")
    assert encode_file(bert, texts, out, restart=True).rows == 1
    assert np.load(out).shape == (1, 64)


def test_a_row_of_the_file() -> None:
    reader = TextReader()
    row = reader.read(4, b'{"id": "x", "text": "a", "pair": "b", "prompt": "query"}')
    assert isinstance(row, TextRow)
    assert (row.line, row.id, row.input.text, row.input.pair, row.input.prompt) == (4, "x", "a", "b", "query")
    again = reader.read(5, b'{"id": "x", "text": "a"}')
    assert isinstance(again, BadRow) and isinstance(again.error, PromptError)
    assert 'a row is one line: {"id": "a", "text"' in reader.read(6, b"[]").error.hint  # type: ignore[union-attr]
