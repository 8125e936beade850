"""Texts to measure on: files, and the held-out passages that come with the program, as token ids. Knows no model.

    .txt      one passage
    .jsonl    one passage a line (tokenizer/passages.py)
    .xz       at the end of either name: packed

A text begins with what the tokenizer puts before it; between passages stands the token that ends a text, where there is one.
Messages are rendered by the chat template, which writes its own; without a template their contents are read one after another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aiasst.artifacts.shipped import HELD_OUT_NAME, data_folder
from aiasst.errors import ArtifactError
from aiasst.tokenizer import Tokenizer, passages
from aiasst.tokenizer.passages import Passage, open_text

Ids = npt.NDArray[np.int64]

DEFAULT_TOKENS = 16_384
"""Read where nobody says how many: 32 windows of 512."""
_HINT = (
    'give a .txt file, or a .jsonl file with {"text": "..."} or {"messages": [...]} on each line; either may end in .xz'
)
_FIRST_CHARACTERS_PER_TOKEN = 8
_SPARE_TOKENS = 64
"""Where a text is read in part, tokens before the cut that are not trusted: the rest of a word could have joined them."""


@dataclass(frozen=True)
class EvaluationText:
    """Token ids to measure on, and where they came from."""

    name: str
    """File name without its folder."""
    ids: Ids
    """int64 [tokens]"""

    @property
    def sha256(self) -> str:
        """Hash over the ids, so that the same text in the same vocabulary is recognised."""
        return ids_hash(self.ids)


def ids_hash(ids: Ids) -> str:
    """Hex digest of token ids as little-endian int64."""
    return hashlib.sha256(np.ascontiguousarray(ids, "<i8").tobytes()).hexdigest()


def held_out_path() -> Path:
    """The held-out passages that come with the program. Raises ArtifactError where the installation lacks them."""
    path = data_folder("calibration") / HELD_OUT_NAME
    if not path.is_file():
        raise ArtifactError(f"this installation lacks {path}", "name a text to measure on: --text FILE")
    return path


def read_text(path: Path, tokenizer: Tokenizer, tokens: int | None = None) -> EvaluationText:
    """The first `tokens` token ids of a text file (None: all of them), fewer where it has not as many.

    Raises:
        ArtifactError: no such file, another kind of file, or a line that is no passage.
    """
    kind = _kind(path)
    ids = _ids_of_text(path, tokenizer, tokens) if kind == ".txt" else _ids_of_passages(path, tokenizer, tokens)
    return EvaluationText(path.name, np.asarray(ids[:tokens], np.int64))


def read_passages(path: Path) -> Iterator[Passage]:
    """The passages of a .jsonl file, or a .txt file as one; see the top of this file.

    Raises:
        ArtifactError: no such file, another kind of file, or a line that is no passage.
    """
    if _kind(path) == ".jsonl":
        yield from passages.read_passages(path, _HINT)
        return
    with open_text(path, _HINT) as file:
        yield Passage(file.read())


def encode_passage(passage: Passage, tokenizer: Tokenizer) -> list[int]:
    """The ids of one passage, with what stands before and after it."""
    if passage.messages and tokenizer.has_chat_template:
        return tokenizer.encode_chat(passage.messages, add_generation_prompt=False)
    ids = tokenizer.encode(passage.text)
    end = tokenizer.eos_ids[:1]
    return ids if not end or ids[-1:] == list(end) else [*ids, *end]


def _ids_of_passages(path: Path, tokenizer: Tokenizer, tokens: int | None) -> list[int]:
    ids: list[int] = []
    for passage in read_passages(path):
        ids += encode_passage(passage, tokenizer)
        if tokens is not None and len(ids) >= tokens:
            break
    return ids


def _ids_of_text(path: Path, tokenizer: Tokenizer, tokens: int | None) -> list[int]:
    """Of a long file only as much is read and encoded as `tokens` need."""
    with open_text(path, _HINT) as file:
        if tokens is None:
            return tokenizer.encode(file.read())
        size = _FIRST_CHARACTERS_PER_TOKEN * (tokens + _SPARE_TOKENS)
        text = ""
        while True:
            more = file.read(size)
            text += more
            ids = tokenizer.encode(text)
            if len(more) < size or len(ids) >= tokens + _SPARE_TOKENS:
                return ids
            size = len(text)


def _kind(path: Path) -> str:
    name = path.with_suffix("") if path.suffix == ".xz" else path
    if name.suffix not in (".txt", ".jsonl"):
        raise ArtifactError(f"{path} is no kind of text that can be measured on", _HINT)
    if not path.is_file():
        raise ArtifactError(f"there is no text {path}", _HINT)
    return name.suffix
