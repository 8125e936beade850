"""NVIDIA graphics processors by NVML, where the package nvidia-ml-py is installed: energy, power, temperature, throttling.

Source: the NVML API reference (millijoules, milliwatts, degrees, bit masks of reasons). Nothing here needs the package.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from aiasst.sensors.reading import Found, Kind, Missing, Place, ReadFn, Sensor, absent

NAME = "nvidia"
_PACKAGE = "pynvml"
# HW slowdown, SW thermal, HW thermal, HW power brake: nvmlClocksEventReasons of nvml.h.
_SLOWED = 0x08 | 0x20 | 0x40 | 0x80
_CORE = 0
"""NVML_TEMPERATURE_GPU."""


def find(place: Place) -> Found:
    """The sensors of every GPU; a driver that does not answer is a reason."""
    nvml = place.library(_PACKAGE)
    if nvml is None:
        return absent(NAME, "nvidia-ml-py is not installed (needed only where there is an NVIDIA GPU)")
    try:
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByIndex(number) for number in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError as error:
        return absent(NAME, f"NVML does not answer: {error}")
    found = Found()
    for number, handle in enumerate(handles):
        found += _gpu(nvml, handle, f"gpu{number}")
    return found if handles else absent(NAME, "NVML knows no GPU here")


def _gpu(nvml: ModuleType, handle: Any, name: str) -> Found:
    wanted: tuple[tuple[Kind, Callable[[], float]], ...] = (
        ("energy", lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) * 1e-3),
        ("power", lambda: nvml.nvmlDeviceGetPowerUsage(handle) * 1e-3),
        ("temperature", lambda: float(nvml.nvmlDeviceGetTemperature(handle, _CORE))),
        ("throttled", lambda: float(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle) & _SLOWED != 0)),
    )
    found = Found()
    for kind, ask in wanted:
        read = _quiet(nvml, ask)
        if read() is None:
            found += Found(missing=(Missing(NAME, name, f"{name} does not tell its {kind}"),))
        else:
            found += Found((Sensor(NAME, kind, name, read),))
    return found


def _quiet(nvml: ModuleType, ask: Callable[[], float]) -> ReadFn:
    def read() -> float | None:
        try:
            return ask()
        except nvml.NVMLError:
            return None

    return read
