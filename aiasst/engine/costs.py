"""What a step costs on this machine, learned from the steps themselves. Knows numbers only: tokens, rows and seconds.

    reading    seconds a token of a prompt, an average in which a token counts half as much after 512 more
    decoding   seconds a step by the number of rows: the faster of the first two, then an exponential average for each number
    verifying  the same for runs of an answer that is alone, by the number of its new tokens: one, or several of a draft
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
DRAFTS_REMEMBERED = 512
"""The same for runs over the tokens of a draft: what was wrongly thought dear costs little to try again."""
FARTHEST = 4
"""Runs over more than so many times the tokens of any that was measured are not guessed at."""
TOLERATED = 0.85
"""More rows are refused where they give less than this share of the tokens a second of fewer rows; noise is smaller."""

SHORTEST = 1e-9
"""Seconds: a clock that stands still divides by nothing."""


@dataclass
class _Average:
    """Seconds of a step of one size."""

    seconds: float
    samples: int
    seen: int


class _Averages:
    """Seconds of steps by their size; what was not seen for `remembered` steps of any size is forgotten."""

    def __init__(self, remembered: int) -> None:
        self._remembered = remembered
        self._known: dict[int, _Average] = {}
        self._taken = 0

    def learn(self, size: int, seconds: float) -> None:
        """A step of `size` took `seconds`."""
        self._taken += 1
        known = self._known.get(size)
        if known is None or self._stale(known):
            self._known[size] = _Average(seconds, 1, self._taken)
            return
        known.samples, known.seen = known.samples + 1, self._taken
        if known.samples <= ENOUGH:
            known.seconds = min(known.seconds, seconds)
        else:
            known.seconds += NEWEST * (min(seconds, OUTLIER * known.seconds) - known.seconds)

    def relied_on(self, size: int) -> float | None:
        """Seconds of a step of `size` that was measured often enough, and not too long ago."""
        known = self._known.get(size)
        return known.seconds if known is not None and known.samples >= ENOUGH and not self._stale(known) else None

    def points(self, samples: int = ENOUGH) -> list[tuple[int, float]]:
        """Sizes, ascending, and their seconds: those that were measured so often, and are not forgotten."""
        known = sorted(self._known.items())
        return [(size, k.seconds) for size, k in known if k.samples >= samples and not self._stale(k)]

    def _stale(self, known: _Average) -> bool:
        return self._taken - known.seen > self._remembered


class Costs:
    """Averages of what was measured, and what follows for steps that were not."""

    def __init__(self) -> None:
        self._token: float | None = None
        self._read = 0
        self._share = 1.0
        self._steps = _Averages(REMEMBERED)
        self._lone = _Averages(DRAFTS_REMEMBERED)

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
        self._steps.learn(rows, seconds)

    def verified(self, tokens: int, seconds: float) -> None:
        """A run over `tokens` new ones of an answer that is alone took `seconds`, the choice of tokens not counted."""
        self._lone.learn(tokens, max(seconds, SHORTEST))

    def answered(self, tokens: int, most: int) -> None:
        """An answer that might have had `most` tokens ended with `tokens`."""
        self._share += NEWEST_ANSWER * (tokens / most - self._share)

    def expected(self, most: int) -> float:
        """How many tokens an answer will have that may have `most`, as answers go here; all of them, where nothing is known."""
        return self._share * most

    def steps(self, samples: int = ENOUGH) -> list[tuple[int, float]]:
        """(Rows, seconds) of the decode steps that were measured so often, rising."""
        return self._steps.points(samples)

    def knows(self, rows: int) -> bool:
        """Whether steps of just so many rows were measured, and not too long ago."""
        return self._steps.relied_on(rows) is not None

    def verify_seconds(self, tokens: int) -> float | None:
        """What a run over `tokens` new ones of an answer that is alone takes; None: nothing near it is known.

        Between measured numbers a straight line. Beyond the largest it goes on with the slope so far, or with what a token of
        a prompt takes where that is more.
        """
        exact = self._lone.relied_on(tokens)
        if exact is not None:
            return exact
        points = self._lone.points()
        below, above = [p for p in points if p[0] < tokens], [p for p in points if p[0] > tokens]
        if not below or (not above and tokens > FARTHEST * below[-1][0]):
            return None
        (first, least), (last, seconds) = below[0], below[-1]
        if above:
            slope = (above[0][1] - seconds) / (above[0][0] - last)
        else:
            slope = max((seconds - least) / max(last - first, 1), self._token or 0.0)
        return seconds + slope * (tokens - last)

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
        points = self._steps.points() or self._steps.points(samples=1)
        if not points:
            return None
        return np.array([rows for rows, _ in points], float), np.array([seconds for _, seconds in points])


def _along(curve: tuple[Floats, Floats], rows: npt.NDArray[np.int64]) -> Floats:
    counts, seconds = curve
    slope = 0.0 if len(counts) == 1 else max(0.0, (seconds[-1] - seconds[0]) / (counts[-1] - counts[0]))
    beyond = np.maximum(0.0, rows - counts[-1])
    found: Floats = np.interp(rows, counts, seconds) + slope * beyond
    return found
