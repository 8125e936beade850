"""The vectors of a corpus on disk, beside it: embedded once, found again as long as corpus and model are the same.

    corpus.jsonl.vectors/MODEL/      MODEL: the first 16 digits of the model's hash
    ├── index.json                   which corpus and model these are of; there once all is
    ├── vectors.npy                  float32 [rows, size], each of length 1
    ├── hnsw.usearch                 the index of a large corpus
    └── lock                         held by who embeds

An interrupted embedding goes on where it stopped. Knows neither how neighbours are found nor what a query is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from aiasst.artifacts.document import Document, write_text_atomically
from aiasst.artifacts.lock import try_lock
from aiasst.artifacts.model_folder import disk_errors
from aiasst.artifacts.vectors import open_vectors, read_vectors
from aiasst.engine.encode import Encoder, Prepared, TextInput
from aiasst.engine.heads import Vector
from aiasst.errors import ArtifactError, PromptError, ResourceError
from aiasst.progress import Progress, ProgressFn, silent
from aiasst.runtime.pooling import normalized
from aiasst.search.corpus import Corpus

Floats = npt.NDArray[np.float32]

WINDOW = 512
"""Passages that are embedded before their vectors are written."""
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")
_RECORD, _BEGUN, _VECTORS, _INDEX = "index.json", "begun.json", "vectors.npy", "hnsw.usearch"


class Record(Document):
    """`index.json`."""

    schema_version: Literal[1] = 1
    corpus_sha256: str
    model: str
    """Name of the folder, for people; the hash decides."""
    model_sha256: str
    rows: int
    embedded: int = 0
    """Of the rows, those whose vectors are written; all of them in `index.json`."""
    cut: int = 0
    """Of these, passages that are longer than the model reads."""


@dataclass(frozen=True)
class Stored:
    """The vectors of a corpus."""

    vectors: Floats
    """float32 [rows, size], memory-mapped."""
    index: Path
    """Where an index of them is, or would be."""
    cut: int
    fresh: bool
    """Whether they were computed now."""


def stored(corpus: Corpus, encoder: Encoder, *, restart: bool = False, progress: ProgressFn = silent) -> Stored:
    """The vectors of `corpus` by `encoder`: those on disk, or new ones, which are put there.

    Raises:
        ArtifactError: a line of the corpus is no row, or another process embeds it now.
        ResourceError: the place cannot be written, or memory is short.
    """
    place = corpus.path.with_name(corpus.path.name + ".vectors") / encoder.identity[:16]
    wanted = Record(
        corpus_sha256=corpus.sha256, model=encoder.name, model_sha256=encoder.identity, rows=len(corpus)
    )  # fmt: skip
    known = None if restart else _same(place / _RECORD, wanted)
    if known is None:
        with _locked(place), disk_errors(place, "free some space"):
            known = None if restart else _same(place / _RECORD, wanted)  # who had the lock may have done it
            if known is None:
                known = _embed(corpus, encoder, place, wanted, restart=restart, progress=progress)
                return Stored(read_vectors(place / _VECTORS, known.rows), place / _INDEX, known.cut, fresh=True)
    return Stored(read_vectors(place / _VECTORS, known.rows), place / _INDEX, known.cut, fresh=False)


def _embed(
    corpus: Corpus, encoder: Encoder, place: Path, wanted: Record, *, restart: bool, progress: ProgressFn
) -> Record:
    (place / _RECORD).unlink(missing_ok=True)
    (place / _INDEX).unlink(missing_ok=True)
    record = (None if restart else _same(place / _BEGUN, wanted)) or wanted
    with open_vectors(place / _VECTORS, record.embedded) as file:
        for start in range(record.embedded, len(corpus), WINDOW):
            rows = range(start, min(start + WINDOW, len(corpus)))
            vectors, cut = _window(corpus, encoder, rows)
            file.append(vectors)
            # Vectors that a killed process wrote behind its last record are cut off when it goes on.
            record = record.model_copy(update={"embedded": rows.stop, "cut": record.cut + cut})
            write_text_atomically(place / _BEGUN, record.to_json())
            progress(Progress("embed", rows.stop, len(corpus), f"{rows.stop}/{len(corpus)} passages"))
    write_text_atomically(place / _RECORD, record.to_json())
    (place / _BEGUN).unlink(missing_ok=True)
    return record


def _window(corpus: Corpus, encoder: Encoder, rows: range) -> tuple[Floats, int]:
    """Vectors of length 1 for some rows, float32 [rows, size], and how many of their texts were cut."""
    prompt = encoder.prompt_among(_DOCUMENT_PROMPTS)
    passages = list(corpus.passages(rows))
    ready: list[Prepared] = []
    made = encoder.prepare([TextInput(passage.text, prompt=prompt) for passage in passages])
    for passage, each in zip(passages, made, strict=True):
        if isinstance(each, PromptError):
            raise ArtifactError(f"{corpus.path}, line {passage.line}: {each.message}", each.hint)
        ready.append(each)
    results = encoder.answer(ready)
    vectors = np.stack([result.values for result in results if isinstance(result, Vector)])
    return normalized(vectors), sum(each.tokens.is_cut for each in ready)


def _same(path: Path, wanted: Record) -> Record | None:
    """What `path` records, where that is of the same corpus and model; anything else is as if it were not there."""
    try:
        found = Record.parse(json.loads(path.read_text(encoding="utf-8")), path.name)
    except (OSError, ValueError, ArtifactError):
        return None
    return found if found.model_copy(update={"embedded": 0, "cut": 0, "model": wanted.model}) == wanted else None


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    """Keep other processes from embedding the same.

    Raises:
        ArtifactError: one is at it.
        ResourceError: the place cannot be written.
    """
    try:
        place.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(place / "lock", os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
    except OSError as error:
        raise ResourceError(
            f"may not write {place}: {error.strerror}", "copy the corpus to a folder that can be written"
        ) from error
    try:
        if not try_lock(descriptor):
            raise ArtifactError(f"another process is embedding {place.parent.name}", "wait until it ends")
        yield
    finally:
        os.close(descriptor)
