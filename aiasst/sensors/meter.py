"""Joules since a meter was made: out of counters that begin again at 0, and out of power over time. Knows no source."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from aiasst.sensors.reading import Sensor


def counted(before: float, after: float, most: float | None) -> float:
    """What a counter went on by that begins again at 0 behind `most` (None: it does not), and did so once at most.

    A counter that falls without an end is one that was set back: nothing is known, so 0.
    """
    if after >= before:
        return after - before
    return most - before + after if most is not None and before <= most else 0.0


class EnergyMeter:
    """Adds up what energy and power sensors give. Read it more often than a counter takes to come round (minutes)."""

    def __init__(self, sensors: Sequence[Sensor], clock: Callable[[], float] = time.perf_counter) -> None:
        """`sensors` of the kinds energy and power; `clock` gives seconds."""
        self._sensors = tuple(sensors)
        self._clock = clock
        self._joules = 0.0
        self._last: dict[int, tuple[float, float]] = {}
        self.joules()

    def joules(self) -> float | None:
        """Since the meter was made; None where no sensor can be read now."""
        for number, sensor in enumerate(self._sensors):
            now, value = self._clock(), sensor.read()
            if value is None:
                continue
            if number in self._last:
                then, before = self._last[number]
                if sensor.kind == "energy":
                    self._joules += counted(before, value, sensor.most)
                else:
                    self._joules += (before + value) / 2 * (now - then)
            self._last[number] = (now, value)
        return self._joules if self._last else None
