"""Gives freed memory back to the system between two phases of the work. Knows no phase and no array.

The C library keeps what large temporary arrays have left behind in pieces, and what comes next takes its memory beside it: a
calibration of one billion parameters leaves half a gigabyte. glibc gives it back when asked to; others do so by themselves.
"""

from __future__ import annotations

import ctypes
import gc
import sys


def give_back() -> None:
    """Return what is free to the system, as far as it lets itself be asked."""
    gc.collect()
    if not sys.platform.startswith("linux"):
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
