"""Heat, energy and throttling of the host, read now and then for whoever counts. Knows no metric and no model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from aiasst.sensors import Found
from aiasst.sensors.chosen import energy, temperature, throttling
from aiasst.sensors.meter import EnergyMeter

LEAST_SECONDS = 1.0
"""Readings asked for sooner are the last ones: sensors take their time, and power is energy over a while."""


@dataclass(frozen=True)
class HostReading:
    """What the host tells; None where it does not."""

    celsius: float | None = None
    joules: float | None = None
    """Since the first reading."""
    watts: float | None = None
    """Since the reading before."""
    throttle_events: float | None = None
    """A count that only rises."""
    missing: tuple[str, ...] = ()
    """Why there is no temperature, energy or throttling, in words."""


class Host:
    """Reads sensors; from any thread, which it may hold up for some milliseconds."""

    def __init__(self, found: Found, clock: Callable[[], float] = time.monotonic) -> None:
        """`found`: see `aiasst.sensors.find`; `clock` gives seconds."""
        self._temperature, self._throttling = temperature(found), throttling(found)
        energies = energy(found, gpu=True)
        self._meter = EnergyMeter(energies.sensors, clock)
        self._missing = tuple(
            f"no {what}: {chosen.reason}"
            for what, chosen in (
                ("temperature", self._temperature),
                ("power", energies),
                ("throttling", self._throttling),
            )
            if not chosen.sensors
        )
        self._clock = clock
        self._lock = threading.Lock()
        self._when, self._joules = clock(), self._meter.joules()
        self._last: HostReading | None = None

    def read(self) -> HostReading:
        """Look at all sensors, or give what they told a moment ago."""
        with self._lock:
            now = self._clock()
            if self._last is None or now - self._when >= LEAST_SECONDS:
                self._last = self._look(now)
            return self._last

    def _look(self, now: float) -> HostReading:
        before, since = self._joules, now - self._when
        self._joules, self._when = self._meter.joules(), now
        watts = None
        if self._joules is not None and before is not None and since > 0:
            watts = (self._joules - before) / since
        return HostReading(
            celsius=self._temperature.highest(),
            joules=self._joules,
            watts=watts,
            throttle_events=self._throttling.total(),
            missing=self._missing,
        )
