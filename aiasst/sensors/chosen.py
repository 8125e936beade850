"""Which of the sensors speak for the machine: its energy, its temperature, its clock, its throttling. Knows no file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from aiasst.sensors.reading import Found, Sensor
from aiasst.sensors.sources.hwmon import chip_and_label

_CPU_CHIP = re.compile(r"coretemp|k8temp|k10temp|zenpower|(cpu|soc|core|package|cluster)\w*(temp|thermal)")
_CPU_ZONE = re.compile(r"cpu|soc|pkg|package|core|cluster", re.IGNORECASE)
_BOARD_INPUT = re.compile(r"VDD_IN|POM_5V_IN|VIN", re.IGNORECASE)
"""What the rail is called that feeds a whole board; other rails are parts of it."""
_PROCESSOR_POWER = frozenset({"zenpower", "fam15h_power"})
_PLAUSIBLE = (-60.0, 150.0)
"""Degrees; sensors that are not connected tell others."""


@dataclass(frozen=True)
class Chosen:
    """Sensors that are read together."""

    sensors: tuple[Sensor, ...]
    scope: str
    """What they speak for, in words; "" where there are none."""
    reason: str = ""
    """Why there are none."""

    def readings(self) -> list[float]:
        """What can be read of them now."""
        return [value for sensor in self.sensors if (value := sensor.read()) is not None]

    def highest(self) -> float | None:
        """The highest reading; None where there is none."""
        return max(self.readings(), default=None)

    def total(self) -> float | None:
        """All readings together; None where there is none."""
        return sum(readings) if (readings := self.readings()) else None


def energy(found: Found, *, gpu: bool = False) -> Chosen:
    """Energy counters or, where there are none, power; never the same joule twice.

    The nearest to the work is taken first: packages with their memory, then sockets, the board's supply, the battery. With
    `gpu` those of graphics processors count as well.
    """
    counters, power = found.of("energy"), found.of("power")
    choices = (
        (tuple(filter(_is_rapl_package, counters)), "processor packages and memory, by RAPL"),
        (tuple(s for s in counters if s.source == "hwmon" and "socket" in s.name.lower()), "processor sockets, by hwmon"),
        (tuple(s for s in power if _BOARD_INPUT.fullmatch(chip_and_label(s.name)[1])), "the board's supply, by hwmon"),
        (tuple(s for s in power if chip_and_label(s.name)[0] in _PROCESSOR_POWER), "the processor, by hwmon"),
        (tuple(s for s in power if s.source == "battery"), "the whole machine, by its battery"),
    )  # fmt: skip
    sensors, scope = next(((sensors, scope) for sensors, scope in choices if sensors), ((), ""))
    cards = _cards(counters, power) if gpu else ()
    words = [part for part in (scope, "graphics processors, by NVML" if cards else "") if part]
    reason = found.why_not("rapl", "hwmon", "battery", *(("nvidia",) if gpu else ()))
    return Chosen((*sensors, *cards), " and ".join(words), "" if words else reason or "no sensor of energy or power")


def _is_rapl_package(sensor: Sensor) -> bool:
    """Packages, and the memory beside them; cores are a part of their package, and the platform has all of it again."""
    if sensor.source != "rapl":
        return False
    zone, _, part = sensor.name.partition("/")
    return zone.startswith("package") and part in ("", "dram")


def _cards(counters: Sequence[Sensor], power: Sequence[Sensor]) -> tuple[Sensor, ...]:
    """Each graphics processor once: its counter, or else its power."""
    ours = {sensor.name: sensor for sensor in (*power, *counters) if sensor.source == "nvidia"}
    return tuple(ours.values())


def temperature(found: Found) -> Chosen:
    """The processor's temperatures, of which the hottest counts; where none is named so, those of the mainboard's firmware."""
    sane = tuple(s for s in found.of("temperature") if _PLAUSIBLE[0] < (s.read() or 0.0) < _PLAUSIBLE[1])
    choices = (
        (tuple(s for s in sane if s.source == "hwmon" and _CPU_CHIP.match(s.name)), "the processor, by hwmon"),
        (tuple(s for s in sane if s.source == "thermal_zones" and _CPU_ZONE.search(s.name)), "the processor, by thermal zones"),
        (tuple(s for s in sane if s.name.startswith("acpitz")), "the mainboard, by ACPI"),
    )  # fmt: skip
    for sensors, scope in choices:
        if sensors:
            return Chosen(sensors, scope)
    reason = found.why_not("hwmon", "thermal_zones") or "no temperature here is known to be the processor's"
    return Chosen((), "", reason)


def clock(found: Found) -> Chosen:
    """The clocks of all cores."""
    sensors = found.of("frequency")
    return Chosen(sensors, "all cores" if sensors else "", "" if sensors else found.why_not("cpufreq"))


def throttling(found: Found) -> Chosen:
    """Counters of events that only rise."""
    sensors = found.of("throttle events")
    reason = "" if sensors else found.why_not("throttling")
    return Chosen(sensors, "processor" if sensors else "", reason)
