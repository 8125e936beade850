"""Which row a prompt begins in, and where its beginning is taken from: a row, or the store. Knows ids only.

A row keeps its keys and values after its answer is complete. A new prompt that begins with the same tokens (a chat's
history, a shared system prompt) takes them over instead of computing them again. What a row loses goes to the store
(`prefix_store`), and comes back from there where no row has as much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]

LEAST = 16
"""Tokens that are worth storing and fetching: fewer are read in one run, which takes hardly longer than a run of one token."""


@dataclass
class Resident:
    """What a row holds: the keys and values of the first `cached` of `tokens`."""

    tokens: Ids = field(default_factory=lambda: np.empty(0, np.int64))
    cached: int = 0
    used: int = 0
    """When it was last worked with; the smallest is overwritten first."""
    shared: int = 0
    """Of `cached`, how many of the first tokens more than one request has begun with."""


@dataclass(frozen=True)
class Placement:
    """Begin in `row`, with the first `length` tokens taken over from row `source`."""

    row: int
    source: int | None
    """The same row: they are there already. None: the store."""
    length: int
    continued: bool = False
    """The prompt goes on where the source ends: a conversation, and no beginning that two prompts share."""


def common_prefix(first: Ids, second: Ids) -> int:
    """How many tokens both begin with."""
    length = min(len(first), len(second))
    different = np.flatnonzero(first[:length] != second[:length])
    return int(different[0]) if len(different) else length


def place(prompt: Ids, residents: Sequence[Resident], free: Sequence[int], stored: int = 0) -> Placement:
    """Choose the row for `prompt` among the `free` ones, and whose beginning it takes over; the store has `stored` tokens of it.

    A resting row that the prompt continues is used in place; else the shared beginning is copied from whichever row has
    it (one under way too) into the row that has rested longest; or from the store, where that has more. The prompt's
    last token is always left to compute: its logits are what the answer begins with.
    """
    shared = [common_prefix(prompt[:-1], resident.tokens[: resident.cached]) for resident in residents]
    # Of equal beginnings, one that rests and ends there is best: nothing is lost by going on in it.
    source = max(range(len(residents)), key=lambda row: (shared[row], _ends_at(residents, free, row, shared[row])))
    length = shared[source]
    oldest_first = sorted(free, key=lambda row: residents[row].used)
    if stored > length:
        # A row that holds nothing else loses nothing.
        row = min(oldest_first, key=lambda row: residents[row].cached > shared[row])
        return Placement(row, None, stored)
    if length == 0:
        return Placement(oldest_first[0], oldest_first[0], 0)
    if _ends_at(residents, free, source, length):
        return Placement(source, source, length, continued=True)
    others = [row for row in oldest_first if row != source]
    return Placement(others[0] if others else source, source, length)


def _ends_at(residents: Sequence[Resident], free: Sequence[int], row: int, length: int) -> bool:
    return row in free and residents[row].cached == length
