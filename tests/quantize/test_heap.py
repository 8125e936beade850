"""Memory that was freed goes back to the system."""

from __future__ import annotations

import sys

import numpy as np
import psutil
import pytest

from aiasst.quantize.heap import give_back


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems are not asked")
def test_what_is_free_is_given_back() -> None:
    process = psutil.Process()
    # Below the size from which the C library maps an array by itself, and one in two kept: holes everywhere.
    arrays = [np.ones(12_000) for _ in range(2_000)]
    full = process.memory_info().rss
    kept = arrays[::50]
    del arrays
    give_back()
    assert full - process.memory_info().rss > 100 << 20
    assert all(array.sum() == 12_000 for array in kept)
