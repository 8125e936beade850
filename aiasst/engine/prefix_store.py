"""Keys and values of what was read and written before, kept beside the rows of the cache. Knows no request and no session.

A row is overwritten when another prompt needs it; what it held goes on here, under a budget in bytes, in the segments of
`prefix_index`. Fetching a token copies its keys and values, which takes a hundredth of computing them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aiasst.engine import prefix_file
from aiasst.engine.cache import CacheShape
from aiasst.engine.prefix import LEAST
from aiasst.engine.prefix_file import MOST_PIECES, Piece
from aiasst.engine.prefix_index import NOTHING, Change, Found, PrefixIndex, Segment

Ids = npt.NDArray[np.int64]
Array = npt.NDArray[Any]

_OBJECT_BYTES = 128
"""What an array takes beside its elements, about; and a segment has as many arrays as the cache has."""


class PrefixStore:
    """The most recently used sequences with their keys and values, in at most `budget` bytes."""

    def __init__(self, shape: CacheShape, budget: int) -> None:
        self._shape = shape
        self._index = PrefixIndex(
            budget,
            bytes_per_token=shape.bytes_per_token + np.dtype(np.int64).itemsize,
            bytes_per_segment=_OBJECT_BYTES * (2 * shape.layers + 4),
        )
        self._arrays: dict[Segment, list[Array]] = {}
        self._news = 0

    @property
    def bytes(self) -> int:
        """Memory that the store takes now."""
        return self._index.bytes

    @property
    def news(self) -> int:
        """Tokens that more than one request has begun with, and that came from no file."""
        return self._news

    def find(self, tokens: Ids) -> Found:
        """The longest beginning of `tokens` that is here; none where it is not worth fetching."""
        found = self._index.find(tokens)
        return found if found.length >= LEAST else NOTHING

    def fetch(self, found: Found, rows: Sequence[Array]) -> None:
        """Copy what was found to the beginning of a cache row (per tensor [1, kv_heads, capacity, head_dim])."""
        at = 0
        for segment, count in found.parts:
            for row, array in zip(rows, self._arrays[segment], strict=True):
                row[0, :, at : at + count] = array[:, :count]
            at += count
        self._use(found, taken=found.length)

    def keep(self, tokens: Ids, rows: Sequence[Array], *, taken: int = 0, spare: Found = NOTHING) -> None:
        """Store `tokens` with the keys and values that a cache row begins with, as far as they fit.

        More than one request has begun with the first `taken` of them. `spare` stays, whatever has to go.
        """
        if len(tokens) < LEAST:
            return
        self._add(tokens, 0, [row[0] for row in rows], spare)
        if taken >= LEAST:
            self._use(self._index.find(tokens[:taken]), taken=taken)

    def resize(self, budget: int) -> None:
        """Keep to `budget` bytes from now on."""
        self._follow(self._index.resize(budget))

    def held(self, tokens: Ids) -> list[Piece]:
        """The longest beginning of `tokens` that is here, to be written to a file; valid until the store changes."""
        return [
            Piece(segment.tokens[:count], number - 1, self._arrays[segment])
            for number, (segment, count) in enumerate(self.find(tokens).parts[:MOST_PIECES])
        ]

    def shared(self) -> list[Piece]:
        """All that more than one request has begun with, to be written to a file; valid until the store changes."""
        pieces: list[Piece] = []
        numbers: dict[Segment, int] = {}
        # The latest first: a later reader may have room for some only.
        for segment in sorted(self._index.segments(), key=_latest):
            if segment.taken:
                parent = -1 if segment.before is None else numbers[segment.before]
                numbers[segment] = len(pieces)
                pieces.append(Piece(segment.tokens[: segment.taken], parent, self._arrays[segment]))
        return pieces[:MOST_PIECES]

    def load(self, path: Path, model: str) -> int:
        """Store what is in a file, as much as fits; gives the tokens read.

        Raises:
            ArtifactError: see `prefix_file.read`; the store may have made room already, and is sound.
        """
        pieces = prefix_file.read(path, model=model, shape=self._shape, room=self._make_room)
        for piece in pieces:
            tokens = _path(pieces, piece)
            self._add(tokens, len(tokens) - len(piece.tokens), piece.arrays, NOTHING)
            self._index.use(self._index.find(tokens), taken=len(tokens))
        return sum(len(piece.tokens) for piece in pieces)

    def _make_room(self, tokens: int, segments: int) -> int:
        """Let go what a file of this size needs; gives the tokens that fit."""
        budget = self._index.budget
        fitting = min(tokens, self._index.tokens_in(budget, segments))
        if fitting:
            self._follow(self._index.resize(budget - self._index.bytes_of(fitting, segments)))
            self._index.resize(budget)
        return fitting

    def _use(self, found: Found, *, taken: int) -> None:
        known = sum(min(segment.taken, count) for segment, count in found.parts)
        self._index.use(found, taken=taken)
        self._news += sum(min(segment.taken, count) for segment, count in found.parts) - known

    def _add(self, tokens: Ids, begin: int, arrays: Sequence[Array], spare: Found) -> None:
        """Store `tokens`; `arrays`, per tensor [kv_heads, tokens, head_dim], are those from token `begin` on."""
        if self._index.find(tokens).length < begin:
            return  # what they go on from did not fit
        try:
            self._follow(change := self._index.insert(tokens, spare))
            if change.added is not None:
                place = slice(change.start - begin, change.start - begin + len(change.added.tokens))
                self._arrays[change.added] = [_own(array, place) for array in arrays]
        except MemoryError:  # what the store has is wanted elsewhere
            budget = self._index.budget
            self._index.resize(0)
            self._index.resize(budget)
            self._arrays.clear()

    def _follow(self, change: Change) -> None:
        if change.split is not None:
            first, rest = change.split
            arrays, count = self._arrays[first], len(first.tokens)
            self._arrays[rest] = []
            for number, array in enumerate(arrays):
                # One tensor at a time, so that old and new together are never twice the segment.
                self._arrays[rest].append(array[:, count:].copy())
                arrays[number] = array[:, :count].copy()
        for segment in change.evicted:
            del self._arrays[segment]
        if change.shortened is not None:
            arrays = self._arrays[change.shortened]
            for number, array in enumerate(arrays):
                arrays[number] = array[:, : len(change.shortened.tokens)].copy()


def _own(array: Array, place: slice) -> Array:
    """The part of an array, as it is where it is all of it and nobody else's."""
    part = array[:, place]
    return array if part.shape == array.shape and array.base is None else part.copy()


def _path(pieces: Sequence[Piece], piece: Piece) -> Ids:
    """The tokens of a piece and of all that it goes on from."""
    parts = [piece.tokens]
    while piece.parent >= 0:
        piece = pieces[piece.parent]
        parts.append(piece.tokens)
    return np.concatenate(parts[::-1])


def _latest(segment: Segment) -> tuple[int, int]:
    """Sorts the last used first, and of one path, used at once, the beginning before the end."""
    depth, before = 0, segment.before
    while before is not None:
        depth, before = depth + 1, before.before
    return -segment.used, depth
