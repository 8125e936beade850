"""What a step costs on this machine, learned from the steps themselves. Knows numbers only: tokens, rows and seconds.

    reading    seconds a token of a prompt, an average in which a token counts half as much after 512 more
    decoding   seconds a step by the number of rows: the faster of the first two, then an exponential average for each number
    answers    the share of the tokens they might have had that they had, an exponential average

Machines stall for seconds now and then, so that one sample moves an average as if it were three times as large as it at
most; a machine that has become slower is still found out within a few steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LEAST_CHUNK = 16
"""Tokens of a prompt below which a run costs what a run costs, not what its tokens do: it is not learned from."""
HALF_LIFE = 512
"""Tokens of prompts after which a measurement counts half."""
NEWEST = 0.2
"""What the newest decode step counts for."""
NEWEST_ANSWER = 0.05
"""What the newest answer's length counts for."""
OUTLIER = 3.0
"""A sample counts as this many times the average at most."""
ENOUGH = 2
"""Decode steps before what a number of rows costs is relied on; the fastest of them counts, since a stall only adds."""
REMEMBERED = 2048
"""Decode steps after which a number of rows that was not seen again is forgotten, so that what was once slow is tried again."""
TOLERATED = 0.85
"""More rows are refused where they give less than this share of the tokens a second of fewer rows; noise is smaller."""

SHORTEST = 1e-9
"""Seconds: a clock that stands still divides by nothing."""


@dataclass
class _Average:
    """Seconds of a decode step with one number of rows."""

    seconds: float
    samples: int
    seen: int


class Costs:
    """Averages of what was measured, and what follows for steps that were not."""

    def __init__(self) -> None:
        self._token: float | None = None
        self._read = 0
        self._steps: dict[int, _Average] = {}
        self._decoded = 0
        self._share = 1.0

    @property
    def token_seconds(self) -> float | None:
        """Seconds a token of a prompt takes to read; None: not known yet."""
        return self._token

    def read(self, tokens: int, seconds: float) -> None:
        """A run over `tokens` of a prompt took `seconds`."""
        if tokens < LEAST_CHUNK:
            return
        sample = seconds / tokens
        self._read += tokens
        if self._token is None:
            self._token = sample
            return
        # The plain mean at first, so that a slow first run is soon outvoted.
        weight = max(1 - 0.5 ** (tokens / HALF_LIFE), tokens / self._read)
        self._token += weight * (min(sample, OUTLIER * self._token) - self._token)

    def decoded(self, rows: int, seconds: float) -> None:
        """A decode step of `rows` rows took `seconds`."""
        self._decoded += 1
        known = self._steps.get(rows)
        if known is None or self._stale(known):
            self._steps[rows] = _Average(seconds, 1, self._decoded)
            return
        known.samples, known.seen = known.samples + 1, self._decoded
        if known.samples <= ENOUGH:
            known.seconds = min(known.seconds, seconds)
        else:
            known.seconds += NEWEST * (min(seconds, OUTLIER * known.seconds) - known.seconds)

    def answered(self, tokens: int, most: int) -> None:
        """An answer that might have had `most` tokens ended with `tokens`."""
        self._share += NEWEST_ANSWER * (tokens / most - self._share)

    def expected(self, most: int) -> float:
        """How many tokens an answer will have that may have `most`, as answers go here; all of them, where nothing is known."""
        return self._share * most

    def knows(self, rows: int) -> bool:
        """Whether steps of just so many rows were measured, and not too long ago."""
        known = self._steps.get(rows)
        return known is not None and known.samples >= ENOUGH and not self._stale(known)

    def step_seconds(self, rows: int) -> float | None:
        """What a decode step of `rows` takes; None: nothing is known.

        Between measured numbers of rows a straight line. Beyond the largest it goes on with the mean slope of all; where
        one number alone is known, its time: what nobody has tried is thought well of until it is tried.
        """
        curve = self._curve()
        return None if curve is None else float(_along(curve, np.array([rows]))[0])

    def best_rows(self, most: int, longest: float) -> int:
        """How many rows to decode at once, 1 … `most`.

        As many as keep a step within `longest` seconds without giving fewer tokens a second than fewer rows do: decoding
        reads every weight once a step however many rows there are, so that more rows are faster until the arithmetic, the
        memory or the target says otherwise.
        """
        curve = self._curve()
        if curve is None:
            return most
        best, fastest = 1, 0.0
        for rows, seconds in enumerate(_along(curve, np.arange(1, most + 1)).tolist(), start=1):
            speed = rows / max(seconds, SHORTEST)
            if rows == 1 or (seconds <= longest and speed >= TOLERATED * fastest):
                best = rows
            fastest = max(fastest, speed)
        return best

    def _curve(self) -> tuple[Floats, Floats] | None:
        """Numbers of rows, ascending, and the seconds of their steps: those that are relied on, or else all there are."""
        fresh = [(rows, known) for rows, known in sorted(self._steps.items()) if not self._stale(known)]
        points = [(rows, known.seconds) for rows, known in fresh if known.samples >= ENOUGH]
        points = points or [(rows, known.seconds) for rows, known in fresh]
        if not points:
            return None
        return np.array([rows for rows, _ in points], float), np.array([seconds for _, seconds in points])

    def _stale(self, known: _Average) -> bool:
        return self._decoded - known.seen > REMEMBERED


def _along(curve: tuple[Floats, Floats], rows: npt.NDArray[np.int64]) -> Floats:
    counts, seconds = curve
    slope = 0.0 if len(counts) == 1 else max(0.0, (seconds[-1] - seconds[0]) / (counts[-1] - counts[0]))
    beyond = np.maximum(0.0, rows - counts[-1])
    found: Floats = np.interp(rows, counts, seconds) + slope * beyond
    return found
