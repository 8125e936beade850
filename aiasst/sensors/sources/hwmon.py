"""Temperatures, power and energy counters of the hardware monitoring chips. Knows not what a chip sits on.

Source: the kernel's Documentation/hwmon/sysfs-interface.rst (millidegrees, microwatts, microjoules).
"""

from __future__ import annotations

import re

from aiasst.sensors.reading import Found, Kind, Missing, Place, Sensor, absent

NAME = "hwmon"
_FOLDER = "sys/class/hwmon"
_FILES: tuple[tuple[str, Kind, float], ...] = (
    ("temp*_input", "temperature", 1e-3),
    ("power*_input", "power", 1e-6),
    ("power*_average", "power", 1e-6),
    ("energy*_input", "energy", 1e-6),
)
_RAILS = frozenset({"ina3221"})
"""Chips that measure supply rails, a current and a voltage of the same number each, and give no power (boards as the Jetsons)."""


def find(place: Place) -> Found:
    """Sensors named "chip label": coretemp Package id 0, ina3221 VDD_IN; without a label the file's number: nvme temp1."""
    found, any_file = Found(), False
    for folder in place.glob(f"{_FOLDER}/hwmon*"):
        chip = place.text(f"{folder}/name") or folder.rsplit("/", 1)[-1]
        for pattern, kind, unit in _FILES:
            for path in place.glob(f"{folder}/{pattern}"):
                any_file = True
                channel = path.rpartition("_")[0]
                if pattern == "power*_average" and place.has(f"{channel}_input"):
                    continue
                label = place.text(f"{channel}_label") or channel.rsplit("/", 1)[-1]
                if place.number(f"{channel}_fault") != 1:
                    found += place.reading(NAME, kind, f"{chip} {label}", path, unit)
        rails = place.glob(f"{folder}/curr*_input") if chip in _RAILS else []
        for path in rails:
            any_file = True
            found += _rail(place, chip, path)
    if any_file:
        return found
    return absent(
        NAME, f"no monitoring chip under /{_FOLDER}: a virtual machine, a container, or a driver is not loaded"
    )


def _rail(place: Place, chip: str, current: str) -> Found:
    """The power of a rail: millivolts times milliamperes."""
    voltage = re.sub(r"curr(\d+)_input$", r"in\1_input", current)
    label = place.text(voltage.replace("_input", "_label")) or current.rsplit("/", 1)[-1].removesuffix("_input")
    name = f"{chip} {label}"

    def read() -> float | None:
        amperes, volts = place.number(current, 1e-3), place.number(voltage, 1e-3)
        return None if amperes is None or volts is None else amperes * volts

    if read() is None:
        broken = current if place.number(current) is None else voltage
        return Found(missing=(Missing(NAME, name, place.trouble(broken)),))
    return Found((Sensor(NAME, "power", name, read),))


def chip_and_label(name: str) -> tuple[str, str]:
    """The two parts of a sensor's name."""
    found = re.fullmatch(r"(\S+) ?(.*)", name)
    return (found.group(1), found.group(2)) if found else (name, "")
