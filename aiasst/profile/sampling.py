"""Repeated measurements on a host that others use as well: taken in turn, visited at several times, until two visits agree.

Repeats within a second share their neighbours on the host, the clock of the cores and the place of their memory: they agree
with each other and may all be a third too slow. So a figure is the best of all repeats, and it stands when another visit, some
seconds away, has come near it. Knows neither what is measured nor what it is for: the clock is given.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")
Clock = Callable[[], float]

QUIET = 0.04
"""Noise below which a figure is not measured again."""
LEAST_VISITS, MOST_VISITS = 2, 8
"""Of everything, if there is time; and of what is noisy."""
LEAST, MOST = 3, 500
"""Repeats of a trial in a visit. Of what takes microseconds many: new threads share a core at first, for some milliseconds."""


@dataclass
class Trial:
    """One thing to be timed, and the seconds that it took so far."""

    run: Callable[[], object]
    visits: list[list[float]] = field(default_factory=list)
    """Seconds of the repeats of each visit."""

    @property
    def best(self) -> float:
        """Seconds of the fastest repeat; a shared host only ever adds."""
        return min(map(min, self.visits))

    @property
    def noise(self) -> float:
        """How far the best of another visit lies above the best: 0.1 is a tenth. Of a single visit, the median of its repeats."""
        if len(self.visits) > 1:
            return sorted(map(min, self.visits))[1] / self.best - 1
        return statistics.median(self.visits[0]) / self.best - 1


def take_turns(
    trials: Sequence[Trial],
    *,
    seconds: float,
    longest: float = float("inf"),
    warm: bool = False,
    clock: Clock = time.perf_counter,
) -> list[Trial]:
    """Visit every trial: run each some times, one after the other and again, for about `seconds` all together.

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
    for trial in taken:
        trial.visits.append([])
    for repeat in range(MOST):
        if repeat >= LEAST and clock() - begun > seconds:
            break
        for trial in taken:
            if warm:
                trial.run()
            trial.visits[-1].append(_timed(trial.run, clock))
    return taken


def visit_until_quiet(
    subjects: Iterable[T], visit: Callable[[T], bool], noise: Callable[[T], float], over: Callable[[], bool]
) -> list[T]:
    """Visit all of `subjects` LEAST_VISITS times in turn, then again and again those that are noisy, the noisiest first.

    Args:
        subjects: what decisions rest on first, for time may be over before the last one.
        visit: measures one once more; False: it cannot be, and is left out from then on.
        noise: of one that was visited.
        over: whether the time is up; then no visit is begun.

    Returns:
        Those that were visited at least once.
    """
    waiting = list(subjects)
    known: list[T] = []
    for turn in range(MOST_VISITS):
        for subject in waiting:
            if over():
                return known
            if visit(subject) and turn == 0:
                known.append(subject)
        waiting = list(known)
        if turn + 1 >= LEAST_VISITS:
            waiting = sorted((one for one in known if noise(one) > QUIET), key=noise, reverse=True)
    return known


def _timed(run: Callable[[], object], clock: Clock) -> float:
    began = clock()
    run()
    return clock() - began
