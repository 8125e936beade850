"""Bytes in words: the unit that reads best, and as many digits as a limit needs."""

from __future__ import annotations

import pytest

from aiasst.sizes import human_bytes


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (14_696_720, "14.7 MB"), (5e9, "5.0 GB"), (2e12, "2.0 TB")],
)
def test_one_decimal_is_enough_to_read(count: float, text: str) -> None:
    assert human_bytes(count) == text
    assert human_bytes(-count).removeprefix("-") == text


def test_a_limit_is_told_from_what_breaks_it() -> None:
    told = [human_bytes(n, exact=True) for n in (999, 1500, 4_470_000, 1.1e9, 1.104e9, 2e15)]
    assert told == ["999 B", "1.5 kB", "4.47 MB", "1.1 GB", "1.104 GB", "2000 TB"]
