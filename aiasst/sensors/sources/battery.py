"""What a battery gives while the machine runs on it: the power of everything, screen included.

Source: the kernel's Documentation/ABI/testing/sysfs-class-power (microwatts; or microamperes and microvolts). On mains the
battery's flow says nothing about the machine.
"""

from __future__ import annotations

from aiasst.sensors.reading import Found, Missing, Place, Sensor, absent

NAME = "battery"
_FOLDER = "sys/class/power_supply"
_MICRO = 1e-6


def find(place: Place) -> Found:
    """Power of each battery of the machine that is discharging now; not those of mice and keyboards."""
    batteries = [folder for folder in place.glob(f"{_FOLDER}/*") if _feeds_machine(place, folder)]
    found = Found()
    for folder in batteries:
        found += _battery(place, folder)
    return found if batteries else absent(NAME, "this machine has no battery")


def _feeds_machine(place: Place, folder: str) -> bool:
    return place.text(f"{folder}/type") == "Battery" and place.text(f"{folder}/scope") != "Device"


def _battery(place: Place, folder: str) -> Found:
    name = folder.rsplit("/", 1)[-1]

    def read() -> float | None:
        return _watts(place, folder) if place.text(f"{folder}/status") == "Discharging" else None

    if read() is not None:
        return Found((Sensor(NAME, "power", name, read),))
    status = place.text(f"{folder}/status") or "of unknown state"
    reason = f"{name} is {status.lower()}: only a battery that is discharging tells what the machine takes"
    if status == "Discharging":
        reason = f"{name} tells neither its power nor its current and voltage"
    return Found(missing=(Missing(NAME, name, reason),))


def _watts(place: Place, folder: str) -> float | None:
    power = place.number(f"{folder}/power_now", _MICRO)
    if power is None:
        current, voltage = place.number(f"{folder}/current_now", _MICRO), place.number(f"{folder}/voltage_now", _MICRO)
        power = None if current is None or voltage is None else current * voltage
    # Some drivers count what flows out as negative.
    return None if power is None else abs(power)
