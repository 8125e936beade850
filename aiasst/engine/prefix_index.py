"""Which beginnings are stored, and which goes when room is needed: a radix tree over token ids. Knows no keys and no values.

Sequences that begin alike share the segments they have in common, so that a prefix of a stored sequence is stored
already. What was used longest ago goes first, from the ends of sequences inwards: a segment never goes before those behind
it. After the tree of SGLang (Zheng et al. 2024, https://arxiv.org/abs/2312.07104), with segments cut at any token.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from aiasst.engine.prefix import common_prefix

Ids = npt.NDArray[np.int64]


@dataclass(eq=False)
class Segment:
    """Some tokens of one sequence or of several that begin alike, and what follows them."""

    tokens: Ids
    parent: Segment | None
    used: int
    """When it was last found, or added; never before those behind it."""
    taken: int = 0
    """How many of its tokens, from the first on, more than one request has begun with."""
    children: dict[int, Segment] = field(default_factory=dict)
    """By their first token."""

    @property
    def before(self) -> Segment | None:
        """The segment that it goes on from; None where it begins sequences."""
        return None if self.parent is None or self.parent.parent is None else self.parent


@dataclass(frozen=True)
class Found:
    """The longest stored beginning of a sequence: segments from the first token on, and how many tokens of each."""

    parts: tuple[tuple[Segment, int], ...]

    @property
    def length(self) -> int:
        """Tokens in all."""
        return sum(count for _, count in self.parts)


NOTHING = Found(())


@dataclass(frozen=True)
class Change:
    """What was done to the segments, in this order; who keeps something for each follows it."""

    split: tuple[Segment, Segment] | None = None
    """The first was cut and the second, a new one, has the rest."""
    evicted: tuple[Segment, ...] = ()
    shortened: Segment | None = None
    """Its last tokens went, and those that it has now are left."""
    added: Segment | None = None
    """New, with the tokens of the sequence from `start` on; fewer than the sequence has where they did not fit."""
    start: int = 0


class PrefixIndex:
    """Token sequences in at most `budget` bytes, the most recently used ones."""

    def __init__(self, budget: int, *, bytes_per_token: int, bytes_per_segment: int) -> None:
        self.bytes = 0
        self._budget = budget
        self._bytes_per_token = bytes_per_token
        self._bytes_per_segment = bytes_per_segment
        self._root = Segment(np.empty(0, np.int64), None, 0)
        self._now = 0

    @property
    def budget(self) -> int:
        """Bytes that all segments may take; `bytes` is never more."""
        return self._budget

    def bytes_of(self, tokens: int, segments: int = 1) -> int:
        """What so many tokens in so many segments take."""
        return tokens * self._bytes_per_token + segments * self._bytes_per_segment

    def tokens_in(self, size: int, segments: int = 1) -> int:
        """How many tokens in so many segments fit into `size` bytes."""
        return max(0, size - segments * self._bytes_per_segment) // self._bytes_per_token

    def segments(self) -> Iterator[Segment]:
        """All of them, each behind its parent."""
        line = list(self._root.children.values())
        while line:
            segment = line.pop()
            yield segment
            line.extend(segment.children.values())

    def find(self, tokens: Ids) -> Found:
        """The longest beginning of `tokens` that is stored. Finding is no use of it: see `use`."""
        parts: list[tuple[Segment, int]] = []
        segment, done = self._root, 0
        while done < len(tokens) and (following := segment.children.get(int(tokens[done]))) is not None:
            count = common_prefix(following.tokens, tokens[done:])
            parts.append((following, count))
            if count < len(following.tokens):
                break
            segment, done = following, done + count
        return Found(tuple(parts))

    def use(self, found: Found, *, taken: int = 0) -> None:
        """What was found is in use now, its first `taken` tokens by another request than the one they came with."""
        self._now += 1
        for segment, count in found.parts:
            segment.used = self._now
            segment.taken = max(segment.taken, min(count, taken))
            taken = max(0, taken - count)

    def insert(self, tokens: Ids, spare: Found = NOTHING) -> Change:
        """Store `tokens`, or as many of the first as fit when all else has gone but `spare`."""
        found = self.find(tokens)
        start = found.length
        last, count = found.parts[-1] if found.parts else (self._root, 0)
        whole = {segment for segment, _ in spare.parts}
        lengths = {segment: len(segment.tokens) for segment in whole}
        lengths |= {segment: held for segment, held in found.parts if segment not in whole}
        cut = count < len(last.tokens)
        least = self.bytes_of(sum(lengths.values()) + 1, len(lengths) + 1 + (cut and last in whole))
        if start == len(tokens) or self._budget < least:
            self.use(found)
            return Change()
        split = None
        if cut:
            split = last, self._split(last, count)
            if last in whole:
                lengths[split[1]] = len(split[1].tokens)
        self.use(found)
        evicted = self._evict(max(0, self._budget - self.bytes_of(len(tokens) - start)), lengths)
        fitting = min(len(tokens) - start, self.tokens_in(self._budget - self.bytes))
        added = Segment(tokens[start : start + fitting].copy(), last, self._now)
        last.children[int(added.tokens[0])] = added
        self.bytes += self.bytes_of(fitting)
        return Change(split, tuple(evicted), added=added, start=start)

    def resize(self, budget: int) -> Change:
        """Keep to `budget` bytes from now on. The last segment that has to go stays as far as it fits."""
        self._budget = budget
        evicted = self._evict(budget, ())
        fitting = self.tokens_in(budget - self.bytes)
        if not evicted or fitting == 0:
            return Change(evicted=tuple(evicted))
        *gone, last = evicted
        last.tokens, last.taken = last.tokens[:fitting].copy(), min(last.taken, fitting)
        (self._root if last.parent is None else last.parent).children[int(last.tokens[0])] = last
        self.bytes += self.bytes_of(fitting)
        return Change(evicted=tuple(gone), shortened=last)

    def _split(self, segment: Segment, count: int) -> Segment:
        """Cut `segment` behind `count` tokens; gives the rest."""
        rest = Segment(
            segment.tokens[count:].copy(), segment, segment.used, max(0, segment.taken - count), segment.children
        )
        for child in rest.children.values():
            child.parent = rest
        segment.tokens = segment.tokens[:count].copy()
        segment.taken = min(segment.taken, count)
        segment.children = {int(rest.tokens[0]): rest}
        self.bytes += self._bytes_per_segment
        return rest

    def _evict(self, budget: int, kept: Collection[Segment]) -> list[Segment]:
        """Take ends of sequences away, used longest ago first, until `budget` is kept or only `kept` ones are left."""
        evicted: list[Segment] = []
        if self.bytes <= budget:
            return evicted
        numbered = enumerate(self.segments())
        ends = [(segment.used, number, segment) for number, segment in numbered if not segment.children]
        heapq.heapify(ends)
        while self.bytes > budget and ends:
            _, number, segment = heapq.heappop(ends)
            if segment in kept or segment.parent is None:
                continue
            parent = segment.parent
            del parent.children[int(segment.tokens[0])]
            self.bytes -= self.bytes_of(len(segment.tokens))
            evicted.append(segment)
            if not parent.children and parent.parent is not None:
                # Its number stays unique: the child that had it is gone.
                heapq.heappush(ends, (parent.used, number, parent))
        return evicted
