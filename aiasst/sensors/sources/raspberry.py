"""The Raspberry Pi's firmware: whether the supply's voltage is too low, and whether the clock is held down.

Source: `get_throttled` of the Raspberry Pi documentation (bits 0 to 3: now; 16 to 19: since the start), which its kernels
show in sysfs; other kernels show low voltage alone, as an alarm of the chip rpi_volt.
"""

from __future__ import annotations

from aiasst.sensors.reading import Found, Missing, Place, Sensor, absent

NAME = "raspberry"
_FLAGS = "sys/devices/platform/soc*/soc*firmware/get_throttled"
_UNDER_VOLTAGE = 0b0001
_HELD_DOWN = 0b1110
"""The clock is capped, throttled, or under the soft temperature limit."""
_SINCE_START = 16


def find(place: Place) -> Found:
    """Low voltage and throttling now, and how many kinds of throttling there have been since the start."""
    paths = place.glob(_FLAGS)
    if paths:
        return _flags(place, paths[0])
    for folder in place.glob("sys/class/hwmon/hwmon*"):
        if place.text(f"{folder}/name") == "rpi_volt":
            return place.reading(NAME, "under-voltage", "rpi_volt", f"{folder}/in0_lcrit_alarm", 1.0)
    if "Raspberry Pi" not in (place.text("proc/device-tree/model") or ""):
        return absent(NAME, "this is no Raspberry Pi")
    return absent(NAME, "this kernel does not show the firmware's flags of throttling")


def _flags(place: Place, path: str) -> Found:
    def bits() -> int | None:
        # Hexadecimal, with and without 0x before it.
        text = place.text(path)
        try:
            return None if text is None else int(text, 16)
        except ValueError:
            return None

    def flag(mask: int) -> float | None:
        found = bits()
        return None if found is None else float(found & mask != 0)

    def events() -> float | None:
        found = bits()
        return None if found is None else float((found & (_HELD_DOWN << _SINCE_START)).bit_count())

    if bits() is None:
        return Found(missing=(Missing(NAME, "get_throttled", place.trouble(path)),))
    return Found(
        (
            Sensor(NAME, "under-voltage", "supply", lambda: flag(_UNDER_VOLTAGE)),
            Sensor(NAME, "throttled", "clock", lambda: flag(_HELD_DOWN)),
            Sensor(NAME, "throttle events", "since the start", events),
        )
    )
