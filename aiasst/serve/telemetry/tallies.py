"""What happened to one model's requests: counts, spreads of seconds, and how both stood some minutes ago. Knows no Prometheus."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields

# fmt: off
BOUNDS = (
    0.001, 0.0015, 0.002, 0.003, 0.005, 0.007, 0.01, 0.015, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7,
    1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0,
)
# fmt: on
"""Upper bounds of the buckets in seconds; neighbours are 1.3 to 1.7 times apart, so that a quantile is that good at worst."""

EVERY_SECONDS = 2.0
"""Distance of what is remembered for the last minutes."""
LONGEST_SECONDS = 300.0
"""How long it is remembered."""


@dataclass
class Spread:
    """A histogram of seconds in fixed buckets."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    """Of values up to each bound and above the one before; the last is of those beyond all bounds."""
    total: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one value."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds

    @property
    def count(self) -> int:
        """Values so far."""
        return sum(self.counts)

    def quantile(self, share: float) -> float | None:
        """Seconds that this share of the values does not exceed, straight between bounds as PromQL's histogram_quantile.

        None where there are no values; the highest bound for those beyond all of them.
        """
        wanted, below, lower = share * self.count, 0, 0.0
        if not self.count:
            return None
        for count, upper in zip(self.counts, BOUNDS, strict=False):
            if count and below + count >= wanted:
                return lower + (upper - lower) * (wanted - below) / count
            below, lower = below + count, upper
        return BOUNDS[-1]

    def __sub__(self, before: Spread) -> Spread:
        counts = [now - then for now, then in zip(self.counts, before.counts, strict=True)]
        return Spread(counts, self.total - before.total)


@dataclass
class Tally:
    """Counts and spreads that only rise."""

    first_token: Spread = field(default_factory=Spread)
    next_token: Spread = field(default_factory=Spread)
    duration: Spread = field(default_factory=Spread)
    embedding: Spread = field(default_factory=Spread)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    embedded_texts: int = 0
    begun: int = 0
    ended: int = 0
    refused: int = 0

    def copy(self) -> Tally:
        """The same, apart."""
        return self - Tally()

    def __sub__(self, before: Tally) -> Tally:
        """What was added since `before`."""
        return Tally(*(getattr(self, each.name) - getattr(before, each.name) for each in fields(self)))


@dataclass(frozen=True)
class Lately:
    """What was added during the last seconds."""

    tally: Tally
    seconds: float
    """How long that was: what was asked for, or since the start."""

    def rate(self, count: float) -> float:
        """So much a second."""
        return count / self.seconds if self.seconds > 0 else 0.0


NOBODY = ""
"""Whose tally is that of all names that are not known."""


class Tallies:
    """A tally for each name, and what they were during the last minutes. Told and asked on one thread; memory is bounded."""

    def __init__(self, names: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds."""
        self._now = {name: Tally() for name in names}
        self._other = self._now.setdefault(NOBODY, Tally())
        self._clock = clock
        self._began = self._next = clock()
        self._kept: deque[tuple[float, dict[str, Tally]]] = deque()

    def __iter__(self) -> Iterator[tuple[str, Tally]]:
        return iter(self._now.items())

    def __contains__(self, name: str) -> bool:
        return name in self._now

    def of(self, name: str) -> Tally:
        """The tally to add to; how all of them stood before is remembered now and then."""
        now = self._clock()
        if now >= self._next:
            self._next = now + EVERY_SECONDS
            self._kept.append((now, {each: tally.copy() for each, tally in self._now.items()}))
            while self._kept[0][0] < now - LONGEST_SECONDS - EVERY_SECONDS:
                self._kept.popleft()
        return self._now.get(name, self._other)

    def lately(self, name: str, seconds: float) -> Lately:
        """What was added to one of them during the last `seconds`; within `EVERY_SECONDS` while requests come.

        While none come nothing is remembered, since nothing changes: the first reading after a moment holds for that moment.
        """
        now = self._clock()
        since = max(now - seconds, self._began)
        when, before = next(((when, kept[name]) for when, kept in self._kept if when >= since), (now, self._now[name]))
        since = min(when, since + EVERY_SECONDS)
        return Lately(self._now[name] - before, max(now - since, 0.0))
