"""Huge pages: which regions are worth it, from the kernel's own text; and that memory stays what it was."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from aiasst.runtime import pages
from aiasst.runtime.pages import PAGE, Region

SMAPS = """\
558000000000-558000100000 r-xp 00000000 fe:00 1234 /usr/bin/python3.11
Size:               1024 kB
Anonymous:             0 kB
7f0000000000-7f0004000000 rw-p 00000000 00:00 0
Size:              65536 kB
Rss:               65536 kB
Anonymous:         65536 kB
AnonHugePages:         0 kB
7f0010000000-7f0010800000 rw-p 00000000 00:00 0          [stack]
Size:               8192 kB
Anonymous:           132 kB
AnonHugePages:         0 kB
7f0020000000-7f0020800000 rw-p 00000000 fe:00 99 /a/file
Anonymous:          8192 kB
7f0030000000-7f0030800000 rw-s 00000000 00:00 0
Anonymous:          8192 kB
7f0040000000-7f0041000000 rw-p 00000000 00:00 0
Anonymous:         16384 kB
AnonHugePages:     16384 kB
"""


def test_regions_are_private_writable_and_no_files() -> None:
    found = list(pages.regions(SMAPS))
    assert [region.size for region in found] == [64 * 2**20, 8 * 2**20, 16 * 2**20]
    assert found[0] == Region(0x7F0000000000, 64 * 2**20, 64 * 2**20, 0)
    assert list(pages.regions("")) == []


def test_stacks_small_regions_and_what_is_there_already_are_left_alone() -> None:
    assert [pages.worth_moving(region) for region in pages.regions(SMAPS)] == [True, False, False]
    assert not pages.worth_moving(Region(0, PAGE, PAGE, 0))
    assert pages.worth_moving(Region(0, 4 * PAGE, 4 * PAGE, 0))


@pytest.mark.parametrize(
    ("switch", "wanted"),
    [
        ("always [madvise] never", True),
        ("[always] madvise never", True),
        ("always madvise [never]", False),
        ("", False),
    ],
)
def test_the_owner_of_the_system_decides(switch: str, wanted: bool) -> None:
    assert pages.allowed(switch) is wanted


def test_memory_stays_what_it_was() -> None:
    # Below NumPy's own request for huge pages (4 MiB) many arrays are one region of the C library.
    held = [np.full(2**19, number, np.int32) for number in range(16)]
    taken = pages.resident_bytes()
    moved = pages.move_to_huge_pages()
    assert all((array == number).all() for number, array in enumerate(held))
    assert moved >= 0
    if sys.platform == "linux":
        assert taken >= 32 * 2**20
        # Only dense regions are moved, so that memory hardly grows.
        assert pages.resident_bytes() < 1.5 * taken + 8 * PAGE


def test_moving_beside_the_work_changes_nothing() -> None:
    held = np.arange(2**22)
    pages.move_later()
    for _ in range(20):
        assert held.sum() == 2**21 * (2**22 - 1)
