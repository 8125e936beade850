"""The main memory: total, and what could be taken now. Of the machine; knows no container's limit."""

from __future__ import annotations

from dataclasses import dataclass

from aiasst.profile.host import Host, key_values, sysctl, whole_number


@dataclass(frozen=True)
class Memory:
    """Main memory, in bytes."""

    total: int
    free: int
    """What a program can get without pushing others out: caches that can be dropped count as free."""


def probe(host: Host) -> Memory:
    """Total and free, from /proc/meminfo, or the system's library."""
    facts = key_values(host.text("/proc/meminfo")) if host.system == "Linux" else {}
    total = _kilobytes(facts, "MemTotal")
    if total:
        # MemAvailable came with Linux 3.14; before it, free memory and page cache are the nearest.
        free = _kilobytes(facts, "MemAvailable") or _kilobytes(facts, "MemFree") + _kilobytes(facts, "Cached")
        return Memory(total, min(free, total))
    library = host.library()
    total = whole_number(sysctl(host).get("hw.memsize", "")) or library.memory_total_bytes
    return Memory(total, min(library.memory_free_bytes, total))


def _kilobytes(facts: dict[str, str], key: str) -> int:
    value = facts.get(key, "").removesuffix(" kB")
    return (whole_number(value) or 0) * 1024
