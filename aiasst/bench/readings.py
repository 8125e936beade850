"""Energy, heat, clocks and throttling around the rounds, from the sensors that this machine has. Knows no model and no speed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from aiasst import sensors
from aiasst.bench.figures import energy_per_token
from aiasst.bench.work import Sample
from aiasst.sensors import Place, chosen
from aiasst.sensors.chosen import Chosen
from aiasst.sensors.meter import EnergyMeter

_STANDS_STILL = "the energy counter stands still"


@dataclass(frozen=True)
class Energy:
    """Joules a token; None where nothing was counted."""

    prefill: float | None
    decode: Mapping[int, float | None]
    """By the number of answers at once."""
    scope: str
    """What the joules are of, in words."""
    reason: str
    """Why there are none; "" where there are."""


@dataclass(frozen=True)
class Change:
    """A reading before and after the rounds; None where there is none."""

    before: float | None
    after: float | None
    scope: str
    reason: str
    """Why there is none; "" where there is."""


@dataclass(frozen=True)
class Throttling:
    """Whether the processor was slowed down by heat or by its supply."""

    events: int | None
    """Counted during the rounds; None where nobody counts."""
    flags: tuple[str, ...]
    """What is said to hold at the end: throttled, under-voltage."""
    reason: str
    """Why nothing is known; "" where something is."""

    @property
    def seen(self) -> bool | None:
        """None where nothing is known."""
        return None if self.reason else bool(self.events or self.flags)


@dataclass(frozen=True)
class Readings:
    """All of them."""

    energy: Energy
    temperature_celsius: Change
    """Of the hottest sensor of the processor."""
    frequency_hertz: Change
    """The mean of the cores."""
    throttling: Throttling


class Instruments:
    """The sensors of a machine, read before and after."""

    def __init__(self, place: Place | None = None, *, gpu: bool = False) -> None:
        """`place`: None is this machine; `gpu`: energy of graphics processors counts as well."""
        self._found = sensors.find(place)
        self._energy = chosen.energy(self._found, gpu=gpu)
        self._heat, self._clock = chosen.temperature(self._found), chosen.clock(self._found)
        self._events = chosen.throttling(self._found)
        self._meter = EnergyMeter(self._energy.sensors)
        self.joules: Callable[[], float | None] = self._meter.joules
        """What the energy sensors have counted; None where there are none."""
        self._before = self._now()

    def begin(self) -> None:
        """The rounds begin now."""
        self._before = self._now()

    def end(self, prefill: Sequence[Sample], decode: Mapping[int, Sequence[Sample]]) -> Readings:
        """The rounds have ended, with these samples."""
        heat, clock, events = self._now()
        heat_before, clock_before, events_before = self._before
        counted = None if events is None or events_before is None else round(events - events_before)
        flags = tuple(s.kind for s in self._found.of("throttled", "under-voltage") if s.read())
        silent = counted is None and not self._found.of("throttled", "under-voltage")
        return Readings(
            energy=self._joules_of(prefill, decode),
            temperature_celsius=_change(heat_before, heat, self._heat),
            frequency_hertz=_change(clock_before, clock, self._clock),
            throttling=Throttling(counted, tuple(dict.fromkeys(flags)), self._events.reason if silent else ""),
        )

    def _now(self) -> tuple[float | None, float | None, float | None]:
        """The highest temperature, the mean clock, the events so far."""
        clocks = self._clock.readings()
        return self._heat.highest(), sum(clocks) / len(clocks) if clocks else None, self._events.total()

    def _joules_of(self, prefill: Sequence[Sample], decode: Mapping[int, Sequence[Sample]]) -> Energy:
        read = energy_per_token(prefill)
        written = {count: energy_per_token(samples) for count, samples in decode.items()}
        known = any(value is not None for value in (read, *written.values()))
        reason = "" if known else self._energy.reason or _STANDS_STILL
        return Energy(read, written, self._energy.scope, reason)


def _change(before: float | None, after: float | None, of: Chosen) -> Change:
    missing = before is None or after is None
    return Change(before, after, of.scope, (of.reason or "it stopped to be readable") if missing else "")
