"""Energy counters of the processor (RAPL, Intel and AMD) by the kernel's power capping interface. Knows no other energy.

Source: the kernel's Documentation/power/powercap/powercap.rst. Zones are packages, parts of them (core, uncore, dram) and, on
some laptops, the whole platform (psys). Since the attack of CVE-2020-8694 most systems let root alone read them.
"""

from __future__ import annotations

from aiasst.sensors.reading import Found, Place, absent

NAME = "rapl"
_FOLDER = "sys/class/powercap"
_MICRO = 1e-6


def find(place: Place) -> Found:
    """One energy sensor a zone: package-0, package-0/dram, psys, …"""
    if not place.has(_FOLDER):
        return absent(NAME, f"there is no /{_FOLDER}: a virtual machine, a container, or a kernel without RAPL")
    zones = {path.split("/")[-2]: path for path in place.glob(f"{_FOLDER}/*/energy_uj")}
    names = {zone: _name(place, zone, zones) for zone in zones}
    # Some processors show the same counters a second time, by memory-mapped registers.
    plain = {name for zone, name in names.items() if "mmio" not in zone}
    found = Found()
    for zone, path in zones.items():
        if "mmio" in zone and names[zone] in plain:
            continue
        most = place.number(f"{_FOLDER}/{zone}/max_energy_range_uj", _MICRO)
        found += place.reading(NAME, "energy", names[zone], path, _MICRO, most)
    return found if zones else absent(NAME, f"/{_FOLDER} has no zone that counts energy")


def _name(place: Place, zone: str, zones: dict[str, str]) -> str:
    """The zone's own name behind its parent's: intel-rapl:0:2 → package-0/dram."""
    own = place.text(f"{_FOLDER}/{zone}/name") or zone
    parent = zone.rpartition(":")[0]
    return f"{_name(place, parent, zones)}/{own}" if parent in zones else own
