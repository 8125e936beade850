"""The rows nearest to a vector: exactly in a small corpus, by an index (HNSW) in a large one. Knows no text.

The index is usearch's (Malkov and Yashunin, arXiv 1603.09320). What it finds is a choice of candidates, whose scores are then
computed exactly; it may miss one.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from aiasst.errors import ArtifactError
from aiasst.progress import Progress, ProgressFn, silent

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

EXACT_ROWS = 50_000
"""Up to here every vector is compared: some milliseconds, and no index to build."""
_CANDIDATES = 10
"""Times as many candidates as are asked for, and at least _FEWEST."""
_FEWEST = 100
_CONNECTIVITY, _EXPANSION = 16, 128
_PIECE = 4096


class Nearest(Protocol):
    """Finds rows."""

    def find(self, query: Floats, count: int) -> tuple[Rows, Floats]:
        """The `count` rows (fewer where there are not as many) nearest to float32 [size], and their cosines, best first."""


class Exact:
    """Compares every vector."""

    def __init__(self, vectors: Floats) -> None:
        """`vectors`: float32 [rows, size], each of length 1."""
        self._vectors = vectors

    def find(self, query: Floats, count: int) -> tuple[Rows, Floats]:
        """As in `Nearest`."""
        return _best(np.arange(len(self._vectors)), self._vectors @ query, count)


class Approximate:
    """Asks an index for candidates and compares those."""

    def __init__(self, vectors: Floats, index: Any) -> None:
        self._vectors = vectors
        self._index = index

    @classmethod
    def open(cls, vectors: Floats, path: Path) -> Approximate:
        """The index in a file that `write_index` made of these vectors. Raises ArtifactError where it is another's."""
        from usearch.index import Index

        try:
            index = Index.restore(str(path), view=True)
        except (RuntimeError, ValueError, OSError):
            index = None
        if index is None or (len(index), index.ndim) != vectors.shape:
            raise ArtifactError(f"{path} is damaged", "build it anew with --restart")
        index.expansion_search = _EXPANSION
        return cls(vectors, index)

    def find(self, query: Floats, count: int) -> tuple[Rows, Floats]:
        """As in `Nearest`."""
        asked = min(max(_FEWEST, _CANDIDATES * count), len(self._vectors))
        rows = np.asarray(self._index.search(query, asked).keys, np.int64)
        return _best(rows, self._vectors[rows] @ query, count)


def can_index() -> bool:
    """Whether usearch is installed."""
    return importlib.util.find_spec("usearch") is not None


def write_index(vectors: Floats, path: Path, progress: ProgressFn = silent) -> None:
    """Build an index of float32 [rows, size], each of length 1, and write it to `path`."""
    from usearch.index import Index

    index = Index(ndim=vectors.shape[1], metric="ip", dtype="f32", connectivity=_CONNECTIVITY)
    for start in range(0, len(vectors), _PIECE):
        piece = np.ascontiguousarray(vectors[start : start + _PIECE])
        index.add(np.arange(start, start + len(piece)), piece)
        progress(Progress("index", start + len(piece), len(vectors)))
    index.save(str(path))


def _best(rows: Rows, scores: Floats, count: int) -> tuple[Rows, Floats]:
    count = min(count, len(rows))
    chosen = np.argpartition(-scores, count - 1)[:count]
    # Of equal scores the earlier row comes first, so that an answer never depends on how it was found.
    order = chosen[np.lexsort((rows[chosen], -scores[chosen]))]
    return rows[order], scores[order]
