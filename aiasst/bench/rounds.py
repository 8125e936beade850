"""Rounds: one measurement of everything after the other, again and again until the time is up. Knows no model.

A machine that others use as well stalls for seconds. A stall hits a round of everything, not all repeats of one figure.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from aiasst.progress import Progress, ProgressFn, silent

Sample = TypeVar("Sample")

LEAST_ROUNDS = 3
"""With fewer a median is no better than a mean."""
_PAUSE_SECONDS = 0.02
"""Between two measurements: threads of the one before spin a while, waiting for more work."""


@dataclass
class Series(Generic[Sample]):
    """One thing to measure, and its figure of every round."""

    name: str
    measure: Callable[[int], Sample]
    """Gets the number of the round."""
    samples: list[Sample] = field(default_factory=list)


def interleave(
    series: Sequence[Series[Any]],
    *,
    seconds: float,
    least: int = LEAST_ROUNDS,
    stage: str = "rounds",
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
    progress: ProgressFn = silent,
) -> None:
    """Measure all of `series` in turn, `least` times at least; then no round begins that would end after `seconds`.

    Whether another fits is told by the longest one so far. `stage` is what `progress` calls it all.
    """
    began, longest, rounds = clock(), 0.0, 0
    while rounds < least or clock() - began + longest <= seconds:
        round_began = clock()
        for number, one in enumerate(series):
            share = min((rounds + number / len(series)) / least, (clock() - began) / seconds if seconds > 0 else 1.0)
            # The last word is said below, once.
            progress(Progress(stage, min(share, 0.999), 1, one.name))
            one.samples.append(one.measure(rounds))
            sleep(_PAUSE_SECONDS)
        longest = max(longest, clock() - round_began)
        rounds += 1
    progress(Progress(stage, 1, 1, f"{rounds} round{'s' if rounds > 1 else ''}"))
