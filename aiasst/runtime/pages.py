"""Weights on huge pages: what a session has just taken is moved onto pages of 2 MiB. Knows no graph and no session.

A decode step reads every weight once, and with pages of 4 KiB the processor looks up each of them. ONNX Runtime packs weights
into memory of the C library, which asks for huge pages only where GLIBC_TUNABLES says so before the program starts; so the
kernel is asked afterwards, piece by piece (madvise(2): MADV_HUGEPAGE, and since Linux 6.1 MADV_COLLAPSE, which moves at once).
Moving a gigabyte takes seconds, so that it is done beside the first steps unless somebody wants to measure. Elsewhere, and where
the system's owner has switched huge pages off, nothing happens.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PAGE = 2 * 2**20
_PIECE = 16 * PAGE
"""Moved in one call, so that whoever waits for a page waits for little."""
_LEAST = 2 * PAGE
"""Regions below this are left alone."""
_DENSE = 0.9
"""Of a region that must be in use: a thread's stack, of which little is, would grow to its full size."""
_HUGEPAGE, _COLLAPSE = 14, 25
"""Advice, by the kernel's uapi/asm-generic/mman-common.h."""
_HEADER = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ (\d+)")
_SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@dataclass(frozen=True)
class Region:
    """Anonymous memory of this process; bytes."""

    start: int
    size: int
    in_use: int
    on_huge_pages: int


def resident_bytes() -> int:
    """Memory of this process that is not a file's; 0 where the system does not tell."""
    if sys.platform != "linux":
        return 0
    fields = Path("/proc/self/statm").read_text().split()
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")


def move_later() -> None:
    """`move_to_huge_pages` on a thread of its own, which the end of the program does not wait for."""
    threading.Thread(target=move_to_huge_pages, name="huge pages", daemon=True).start()


def move_to_huge_pages() -> int:
    """Move all dense anonymous regions of this process; the bytes of those pieces that the kernel took."""
    if sys.platform != "linux" or not allowed(_text(_SWITCH)):
        return 0
    library = ctypes.CDLL(None, use_errno=True)
    library.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    moved = 0
    for region in regions(_text(Path("/proc/self/smaps"))):
        first, last = -(-region.start // PAGE) * PAGE, (region.start + region.size) // PAGE * PAGE
        if not worth_moving(region):
            continue
        for start in range(first, last, _PIECE):
            size = min(_PIECE, last - start)
            # A kernel before 6.1 refuses the second; its own thread moves the pages then, in the course of minutes. Memory that
            # was given back meanwhile is refused as well.
            if library.madvise(start, size, _HUGEPAGE) == 0 and library.madvise(start, size, _COLLAPSE) == 0:
                moved += size
    return moved


def allowed(switch: str) -> bool:
    """Whether the kernel gives huge pages to those who ask: `always [madvise] never` names what is chosen."""
    return "[madvise]" in switch or "[always]" in switch


def worth_moving(region: Region) -> bool:
    """Large, in use, and not there yet."""
    return (
        region.size >= _LEAST
        and region.in_use >= _DENSE * region.size
        and region.on_huge_pages < _DENSE * (region.size - PAGE)
    )


def regions(smaps: str) -> Iterator[Region]:
    """Private writable anonymous regions in the text of /proc/self/smaps (proc(5))."""
    for block in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", smaps):
        header = _HEADER.match(block)
        if header is None or header[3] != "rw-p" or header[4] != "0":
            continue
        start, end = int(header[1], 16), int(header[2], 16)
        yield Region(start, end - start, _field(block, "Anonymous"), _field(block, "AnonHugePages"))


def _field(block: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", block, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
