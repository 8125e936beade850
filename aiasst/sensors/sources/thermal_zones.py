"""Temperatures of the kernel's thermal zones. Knows not which of them is the processor's.

Source: the kernel's Documentation/driver-api/thermal/sysfs-api.rst (millidegrees).
"""

from __future__ import annotations

from aiasst.sensors.reading import Found, Place, absent

NAME = "thermal_zones"
_FOLDER = "sys/class/thermal"


def find(place: Place) -> Found:
    """One temperature a zone, named by its type: x86_pkg_temp, cpu-thermal, acpitz; numbered where several are of one type."""
    zones = place.glob(f"{_FOLDER}/thermal_zone*")
    types = [place.text(f"{zone}/type") or "zone" for zone in zones]
    found = Found()
    for number, (zone, kind) in enumerate(zip(zones, types, strict=True)):
        name = kind if types.count(kind) == 1 else f"{kind} {types[:number].count(kind)}"
        found += place.reading(NAME, "temperature", name, f"{zone}/temp", 1e-3)
    return found if zones else absent(NAME, f"no thermal zone under /{_FOLDER}")
