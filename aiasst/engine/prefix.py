"""Which row a prompt may begin with: what the rows hold, and the longest beginning they share with it. Knows ids only.

A row keeps its keys and values after its answer is complete. A new prompt that begins with the same tokens (a chat's
history, a shared system prompt) takes them over instead of computing them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]


@dataclass
class Resident:
    """What a row holds: the keys and values of the first `cached` of `tokens`."""

    tokens: Ids = field(default_factory=lambda: np.empty(0, np.int64))
    cached: int = 0
    used: int = 0
    """When it was last worked with; the smallest is overwritten first."""


@dataclass(frozen=True)
class Placement:
    """Begin in `row`, with the first `length` tokens taken over from row `source` (the same row: they are there already)."""

    row: int
    source: int
    length: int


def common_prefix(first: Ids, second: Ids) -> int:
    """How many tokens both begin with."""
    length = min(len(first), len(second))
    different = np.flatnonzero(first[:length] != second[:length])
    return int(different[0]) if len(different) else length


def place(prompt: Ids, residents: Sequence[Resident], free: Sequence[int]) -> Placement:
    """Choose the row for `prompt` among the `free` ones, and the row whose beginning it takes over.

    A resting row that the prompt continues is used in place; else the shared beginning is copied from whichever row has
    it (one under way too) into the row that has rested longest. The prompt's last token is always left to compute: its
    logits are what the answer begins with.
    """
    shared = [common_prefix(prompt[:-1], resident.tokens[: resident.cached]) for resident in residents]
    # Of equal beginnings, one that rests and ends there is best: nothing is lost by going on in it.
    source = max(range(len(residents)), key=lambda row: (shared[row], _ends_at(residents, free, row, shared[row])))
    length = shared[source]
    oldest_first = sorted(free, key=lambda row: residents[row].used)
    if length == 0:
        return Placement(oldest_first[0], oldest_first[0], 0)
    if _ends_at(residents, free, source, length):
        return Placement(source, source, length)
    others = [row for row in oldest_first if row != source]
    return Placement(others[0] if others else source, source, length)


def _ends_at(residents: Sequence[Resident], free: Sequence[int], row: int, length: int) -> bool:
    return row in free and residents[row].cached == length
