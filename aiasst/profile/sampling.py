"""Repeated measurements on a host that others use as well: taken in turn, best of many, and once more where they were noisy.

Knows neither what is measured nor what it is for: a Trial is something that takes seconds, and the clock is given.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")
Clock = Callable[[], float]

QUIET = 0.1
"""Noise below which a figure is not measured again."""
LEAST, MOST = 3, 12
"""Repeats of a trial in a visit."""
_KEPT = 12
"""Of all repeats the fastest so many count: a host that was busy for a while has then not spoilt what came after."""


@dataclass
class Trial:
    """One thing to be timed, and the seconds that it took so far."""

    run: Callable[[], object]
    seconds: list[float] = field(default_factory=list)

    @property
    def best(self) -> float:
        """Seconds of the fastest repeat; a shared host only ever adds."""
        return min(self.seconds)

    @property
    def noise(self) -> float:
        """How far the median of the fastest repeats lies above the best: 0.1 is a tenth."""
        return statistics.median(sorted(self.seconds)[:_KEPT]) / self.best - 1


def take_turns(
    trials: Sequence[Trial],
    *,
    seconds: float,
    longest: float = float("inf"),
    warm: bool = False,
    clock: Clock = time.perf_counter,
) -> list[Trial]:
    """Run every trial some times, one after the other and again, for about `seconds` all together.

    Args:
        trials: from the cheapest to the dearest.
        seconds: after this long no round is begun; LEAST rounds are made whatever they take, MOST at most.
        longest: a trial whose first run takes longer is the last one that is measured.
        warm: run each once more before it is timed, so that the caches hold what is its own and not the trial's before.
        clock: in seconds.

    Returns:
        Those that were measured: the first ones of `trials`. A trial's first run warms up and does not count.
    """
    begun, taken = clock(), []
    for trial in trials:
        first = _timed(trial.run, clock)
        taken.append(trial)
        if first > longest:
            break
    for repeat in range(MOST):
        if repeat >= LEAST and clock() - begun > seconds:
            break
        for trial in taken:
            if warm:
                trial.run()
            trial.seconds.append(_timed(trial.run, clock))
    return taken


def noisiest_first(visits: Iterable[T], noise: Callable[[T], float], quiet: float = QUIET) -> list[T]:
    """Those that are to be measured again, the noisiest first."""
    return sorted((visit for visit in visits if noise(visit) > quiet), key=noise, reverse=True)


def _timed(run: Callable[[], object], clock: Clock) -> float:
    began = clock()
    run()
    return clock() - began
