"""What the host tells about energy, heat and clocks while work goes on; each reading, or the reason why there is none.

    reading.py   a sensor, what is missing, and where sensors are looked for (the machine, or a tree of fixtures)
    sources/     where sensors come from, one file a source
    chosen.py    which of them speak for the machine: its energy, its temperature, its clock, its throttling
    meter.py     joules out of counters that begin again, and out of power

It stands below the engine, which paces itself by these readings, and beside the runtime. Knows no model and decides nothing.

>>> from aiasst.sensors import find
>>> [missing.reason for missing in find().missing]
"""

from __future__ import annotations

from aiasst.sensors.reading import Found, Missing, Place, Sensor, this_place
from aiasst.sensors.sources import find_in

__all__ = ["Found", "Missing", "Place", "Sensor", "find"]


def find(place: Place | None = None) -> Found:
    """All sensors that can be read at `place` (None: on this machine), and what is missing and why. Never raises."""
    return find_in(place or this_place())
