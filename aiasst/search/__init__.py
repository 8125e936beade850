"""Finding the passages of a corpus that are nearest in meaning to a query. Composes the parts; computes nothing.

    corpus.py    the file of passages
    store.py     their vectors on disk, computed once
    nearest.py   which vectors are near: exactly, or by an index

>>> from aiasst import load
>>> from aiasst.search import Search
>>> Search.open(load("minilm-w8a8"), Path("corpus.jsonl")).find("What do cats eat?")[0].text
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from aiasst.artifacts.document import written_whole
from aiasst.engine.encode import Encoder
from aiasst.errors import PromptError, UsageError
from aiasst.progress import ProgressFn, silent
from aiasst.runtime.pooling import normalized
from aiasst.search.corpus import Corpus
from aiasst.search.nearest import EXACT_ROWS, Approximate, Exact, Nearest, can_index, write_index
from aiasst.search.store import Stored, stored

__all__ = ["Hit", "Search"]

_QUERY_PROMPTS = ("query",)


@dataclass(frozen=True)
class Hit:
    """A passage that was found."""

    id: str | int
    line: int
    score: float
    """Cosine of the angle between its vector and the query's."""
    text: str


class Search:
    """A corpus that can be asked."""

    def __init__(self, encoder: Encoder, corpus: Corpus, nearest: Nearest, *, fresh: bool, cut: int) -> None:
        self.corpus = corpus
        self.fresh = fresh
        """Whether the corpus was embedded now."""
        self.cut = cut
        """Passages that are longer than the model reads: the rest of them is not found."""
        self.exact = isinstance(nearest, Exact)
        self._encoder = encoder
        self._nearest = nearest

    @classmethod
    def open(
        cls,
        encoder: Encoder,
        corpus: Path,
        *,
        exact: bool = False,
        restart: bool = False,
        progress: ProgressFn = silent,
    ) -> Search:
        """Open a corpus, embedding it first where its vectors are not on disk.

        Args:
            encoder: what makes vectors of texts.
            corpus: a .jsonl file, see `corpus.py`.
            exact: compare every vector, also in a large corpus.
            restart: embed anew in any case.
            progress: told of passages.

        Raises:
            ArtifactError: the corpus is missing or wrong, or another process embeds it.
            ResourceError: the vectors cannot be written beside it.
            UsageError: the model makes no vectors.
        """
        if encoder.kind != "vector":
            raise UsageError("this model makes no vectors, so it finds nothing", "take a model that embeds texts")
        opened = Corpus.open(corpus)
        known = stored(opened, encoder, restart=restart, progress=progress)
        nearest = _nearest(known, exact=exact, progress=progress)
        return cls(encoder, opened, nearest, fresh=known.fresh, cut=known.cut)

    def find(self, query: str, top: int = 5) -> list[Hit]:
        """The `top` passages nearest to `query`, best first.

        Raises:
            PromptError: the query is empty.
        """
        if not query.strip():
            raise PromptError("the query is empty", "write at least one word")
        prompt = self._encoder.prompt_among(_QUERY_PROMPTS)
        vector = normalized(self._encoder.encode([query], prompt=prompt))[0]
        rows, scores = self._nearest.find(vector, top)
        passages = self.corpus.passages(rows.tolist())
        return [
            Hit(passage.id, passage.line, round(float(score), 6), passage.text)
            for passage, score in zip(passages, scores, strict=True)
        ]


def _nearest(known: Stored, *, exact: bool, progress: ProgressFn) -> Nearest:
    if exact or len(known.vectors) <= EXACT_ROWS or not can_index():
        return Exact(known.vectors)
    if not known.index.exists():
        with written_whole(known.index) as written:
            write_index(known.vectors, written, progress)
    return Approximate.open(known.vectors, known.index)
