"""Bytes in the words that people read, in one place. Knows no disk, no memory and no model."""

from __future__ import annotations


def human_bytes(count: float, *, exact: bool = False) -> str:
    """Bytes in the unit that reads best, powers of ten as disks are sold: 14.7 MB, or to four digits where `exact`: 1.104 GB.

    Exact is for limits: 1.104 GB are more than 1.1 GB, which one decimal does not tell.
    """
    unit = "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if abs(count) < 1000:
            break
        count, unit = count / 1000, larger
    if exact:
        return f"{count:.4g} {unit}"
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
