"""The CPU's caches. Knows nothing of what is done with them."""

from __future__ import annotations

from typing import Literal

from aiasst.artifacts.device import Cache
from aiasst.profile.host import Host, cpu_list, sysctl, whole_number
from aiasst.profile.probes.cores import Cores

_Kind = Literal["data", "instruction", "unified"]
_KINDS: dict[str, _Kind] = {"Data": "data", "Instruction": "instruction", "Unified": "unified"}
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def probe(host: Host, cores: Cores) -> tuple[Cache, ...]:
    """Every level and kind, summed over its instances; empty where the system does not tell."""
    if host.system == "Linux":
        return _from_sysfs(host, cores)
    return _from_sysctl(sysctl(host))


def _from_sysfs(host: Host, cores: Cores) -> tuple[Cache, ...]:
    """One core of each kind is read and stands for its kind: a server has thousands of these files."""
    found: dict[tuple[int, _Kind], list[int]] = {}
    seen: set[tuple[int, _Kind, tuple[int, ...]]] = set()
    for efficient in (False, True):
        alike = {cpu for core in cores.cores if core.efficient == efficient for cpu in core.cpus}
        for folder in host.glob(f"/sys/devices/system/cpu/cpu{min(alike)}/cache/index[0-9]*") if alike else ():
            level, kind = host.number(f"{folder}/level"), _KINDS.get(host.line(f"{folder}/type"))
            size, sharing = _bytes(host.line(f"{folder}/size")), cpu_list(host.text(f"{folder}/shared_cpu_list"))
            if level is None or kind is None or not size or (level, kind, sharing) in seen:
                continue
            seen.add((level, kind, sharing))
            instances = max(1, len(alike) // max(1, len(alike & set(sharing))))
            entry = found.setdefault((level, kind), [0, 0])
            entry[0] += instances
            entry[1] += instances * size
    return tuple(
        Cache(level=level, kind=kind, bytes=total, instances=instances)
        for (level, kind), (instances, total) in sorted(found.items())
    )


def _bytes(text: str) -> int:
    number = whole_number(text[:-1] if text[-1:] in _UNITS else text)
    return (number or 0) * _UNITS.get(text[-1:], 1)


def _from_sysctl(facts: dict[str, str]) -> tuple[Cache, ...]:
    caches: list[Cache] = []
    for key, level, kind in (("l1i", 1, "instruction"), ("l1d", 1, "data"), ("l2", 2, "unified"), ("l3", 3, "unified")):
        instances, total = _perflevels(facts, key)
        if not total:
            total = whole_number(facts.get(f"hw.{key}cachesize", "")) or 0
            instances = (whole_number(facts.get("hw.physicalcpu", "")) or 1) if level == 1 else 1
            total *= instances
        if total:
            caches.append(Cache(level=level, kind=_KINDS[kind.capitalize()], bytes=total, instances=instances))
    return tuple(caches)


def _perflevels(facts: dict[str, str], key: str) -> tuple[int, int]:
    """(instances, bytes in all) over the kinds of cores of an Apple chip; (0, 0) where there are no such keys."""
    instances = total = 0
    for level in ("hw.perflevel0", "hw.perflevel1"):
        size = whole_number(facts.get(f"{level}.{key}cachesize", "")) or 0
        count = whole_number(facts.get(f"{level}.physicalcpu", "")) or 0
        sharing = whole_number(facts.get(f"{level}.cpusperl2", "")) or 1 if key == "l2" else 1
        here = -(-count // sharing) if size else 0
        instances, total = instances + here, total + here * size
    return instances, total
