"""How often Intel processors were slowed down by heat, since the system started. Other makers' do not count it.

Source: the kernel's Documentation/ABI/testing/sysfs-devices-system-cpu (thermal_throttle).
"""

from __future__ import annotations

from aiasst.sensors.reading import Found, Kind, Missing, Place, Sensor, absent

NAME = "throttling"
_CPUS = "sys/devices/system/cpu/cpu[0-9]*"
_KIND: Kind = "throttle events"


def find(place: Place) -> Found:
    """Events of all cores together, and of all packages."""
    cores = place.glob(f"{_CPUS}/thermal_throttle/core_throttle_count")
    packages = _one_a_package(place, place.glob(f"{_CPUS}/thermal_throttle/package_throttle_count"))
    if not cores and not packages:
        return absent(NAME, "this processor or kernel does not count its thermal throttling")
    return _counted(place, "cores", cores) + _counted(place, "packages", packages)


def _one_a_package(place: Place, paths: list[str]) -> list[str]:
    """Every core of a package tells the same count."""
    first: dict[float | None, str] = {}
    for path in paths:
        core = path.removesuffix("/thermal_throttle/package_throttle_count")
        first.setdefault(place.number(f"{core}/topology/physical_package_id"), path)
    return list(first.values())


def _counted(place: Place, name: str, paths: list[str]) -> Found:
    def read() -> float | None:
        counts = [count for path in paths if (count := place.number(path)) is not None]
        return sum(counts) if counts else None

    if not paths:
        return Found()
    if read() is None:
        return Found(missing=(Missing(NAME, name, place.trouble(paths[0])),))
    return Found((Sensor(NAME, _KIND, name, read),))
