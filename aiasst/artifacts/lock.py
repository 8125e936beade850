"""One process at a time: an advisory lock that the system drops when its holder dies. Knows no file format."""

from __future__ import annotations

import os
import sys

_BYTE = 1 << 30
"""Where Windows locks one byte: beyond the content, since its locks forbid others to read what they cover."""


def try_lock(descriptor: int) -> bool:
    """Lock the open file until it is closed or this process ends, however it ends; False: another process has it."""
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, _BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
