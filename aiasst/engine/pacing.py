"""Pauses between steps that keep a temperature limit and a power budget. Knows no sensor and no request; reads what it is given.

The share of time that work may take (its duty) falls in a straight line over the last BAND degrees below the limit, from all of
it to LEAST_DUTY at the limit. For a body that warms up towards a fixed temperature while work goes on, as a processor under its
cooler does, that line has one point of rest below the limit, and it is reached from below without going beyond. Power is kept by
a bucket: the budget flows in with time, joules flow out, and work waits while it is empty. Whatever the readings say, work gets
LEAST_DUTY of the time: where others heat the machine, an answer is slow and does not stand still.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

BAND = 6.0
"""Degrees below the limit from which on work is slowed down."""
LEAST_DUTY = 0.05
BURST_SECONDS = 1.0
"""Of the power budget that may be saved up: short answers of an idle machine come at full speed."""
LOOK_SECONDS = 0.1
"""Of work between two readings: reading takes some tens of microseconds a sensor."""
DEBT_SECONDS = 60.0
"""Of the power budget that may be owed: what others take beyond it for hours is not held against this program for hours."""
SLICE_SECONDS = 0.25
"""Of a pause between two readings: it ends as soon as the machine is cool."""
LEAST_PAUSE = 0.001
"""Seconds; shorter sleeps take as long anyway."""

ReadFn = Callable[[], "float | None"]


@dataclass(frozen=True)
class Limits:
    """What is to be kept; None: no limit of that kind."""

    temperature_celsius: float | None = None
    power_watts: float | None = None


def duty(temperature: float, limit: float) -> float:
    """Share of time that work may take at `temperature`, LEAST_DUTY … 1; both in degrees Celsius."""
    return min(1.0, max(LEAST_DUTY, (limit - temperature) / BAND))


class Bucket:
    """A power budget: `watts` flow in, joules flow out."""

    def __init__(self, watts: float) -> None:
        self._watts = watts
        self._saved = BURST_SECONDS * watts
        self._last: tuple[float, float] | None = None

    def seconds_to_wait(self, now: float, joules: float | None) -> float:
        """Until it would be full enough if nothing were taken; `joules` is a meter's reading at `now` (None: not known)."""
        if joules is not None:
            if self._last is not None:
                then, before = self._last
                flow = self._watts * (now - then) - (joules - before)
                most, least = BURST_SECONDS * self._watts, -DEBT_SECONDS * self._watts
                self._saved = max(least, min(self._saved + flow, most))
            self._last = now, joules
        return max(0.0, -self._saved / self._watts)


class Governor:
    """Readings and time in, pause out."""

    def __init__(self, limits: Limits) -> None:
        self._limit = limits.temperature_celsius
        self._bucket = None if limits.power_watts is None else Bucket(limits.power_watts)
        self._temperature: float | None = None

    def pause(
        self, worked: float, paused: float, *, now: float, temperature: float | None, joules: float | None
    ) -> float:
        """Seconds that are still to be waited before the next step; 0: go on.

        Args:
            worked: seconds of work since the last pause.
            paused: seconds that have been waited for it already.
            now: the time in seconds.
            temperature: in degrees Celsius; None: not known now, and the last one holds.
            joules: a meter's reading; None: not known now.
        """
        self._temperature = self._temperature if temperature is None else temperature
        wanted = 0.0
        if self._limit is not None and self._temperature is not None:
            share = duty(self._temperature, self._limit)
            wanted = worked * (1 - share) / share - paused
        if self._bucket is not None:
            wanted = max(wanted, self._bucket.seconds_to_wait(now, joules))
        return max(0.0, min(wanted, worked * (1 - LEAST_DUTY) / LEAST_DUTY - paused))


class Pacer:
    """A governor with a clock, a way to sleep, and readers."""

    def __init__(
        self,
        limits: Limits,
        *,
        temperature: ReadFn,
        joules: ReadFn,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`temperature` gives degrees Celsius, `joules` what a meter has counted, `clock` seconds."""
        self.limits = limits
        self.paced_seconds = 0.0
        """All pauses together."""
        self._governor = Governor(limits)
        self._temperature, self._joules = temperature, joules
        self._clock, self._sleep = clock, sleep
        self._worked = self._owed = self._paused = 0.0
        # What flows from now on is counted.
        self._wanted(0.0, 0.0)

    def worked(self, seconds: float) -> None:
        """A step took so long."""
        self._worked += seconds

    def resting(self) -> bool:
        """Sleep a slice where the limits ask for it; True: ask again before the next step, since the rest may go on.

        In slices, so that requests can come, end and miss their deadlines in the meantime.
        """
        if not self._owed:
            if self._worked < LOOK_SECONDS:
                return False
            self._owed, self._paused, self._worked = self._worked, 0.0, 0.0
        wanted = self._wanted(self._owed, self._paused)
        if wanted <= 0:
            self._owed = 0.0
            return False
        began = self._clock()
        self._sleep(min(max(wanted, LEAST_PAUSE), SLICE_SECONDS))
        slept = self._clock() - began
        self._paused += slept
        self.paced_seconds += slept
        return True

    def _wanted(self, worked: float, paused: float) -> float:
        return self._governor.pause(
            worked, paused, now=self._clock(), temperature=self._temperature(), joules=self._joules()
        )
