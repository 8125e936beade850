"""The clocks of the cores, and the highest that they have. Knows nothing of why they fall.

Source: the kernel's Documentation/admin-guide/pm/cpufreq.rst (kilohertz).
"""

from __future__ import annotations

from aiasst.sensors.reading import Found, Place, absent

NAME = "cpufreq"
_FOLDER = "sys/devices/system/cpu"


def find(place: Place) -> Found:
    """One frequency a policy (the cores that share a clock), with the hardware's highest."""
    policies = place.glob(f"{_FOLDER}/cpufreq/policy*") or place.glob(f"{_FOLDER}/cpu[0-9]*/cpufreq")
    found = Found()
    for folder in policies:
        name = folder.removesuffix("/cpufreq").rsplit("/", 1)[-1]
        most = place.number(f"{folder}/cpuinfo_max_freq", 1e3)
        found += place.reading(NAME, "frequency", name, f"{folder}/scaling_cur_freq", 1e3, most)
    if policies:
        return found
    return absent(NAME, f"no frequency policy under /{_FOLDER}: the host or the firmware sets the clocks")
