"""A .npy file of float32 rows that grows: rows are appended, and a process that was killed leaves whole rows. Knows no text.

The header has a fixed length (numpy's format 1.0, numpy/lib/format.py), so that the number of rows can be written anew in place.
Whoever appends knows how many rows count: rows behind them are what a killed process left, and are cut off.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from aiasst.errors import ArtifactError, ResourceError

Floats = npt.NDArray[np.float32]

_MAGIC = b"\x93NUMPY\x01\x00"
_HEADER_BYTES = 128
_ITEM = 4


class VectorsFile:
    """An open file of vectors."""

    def __init__(self, path: Path, file: BinaryIO, rows: int) -> None:
        self.path = path
        self.rows = rows
        self._file = file
        self._size = 0

    def append(self, vectors: Floats) -> None:
        """Append float32 [rows, size]; they are on the disk when this returns.

        Raises:
            ResourceError: the disk is full or failed; what was there before is whole.
        """
        self._size = vectors.shape[1]
        try:
            self._file.seek(_HEADER_BYTES + self.rows * self._size * _ITEM)
            self._file.write(np.ascontiguousarray(vectors, "<f4").tobytes())
            self.rows += len(vectors)
            self._file.seek(0)
            self._file.write(_header(self.rows, self._size))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise ResourceError(
                f"{self.path} cannot be continued: {error.strerror}",
                "free some space, then give the same command again: it goes on from there",
            ) from error


@contextmanager
def open_vectors(path: Path, rows: int) -> Iterator[VectorsFile]:
    """Open the vectors at `path` to append to them, of which the first `rows` count; 0 begins anew. Without rows no file stays.

    Raises:
        ArtifactError: it has not as many rows, or is no such file.
        ResourceError: the place cannot be written.
    """
    size = 0
    if rows:
        size = read_vectors(path, rows).shape[1]
    try:
        file = path.open("r+b" if rows else "w+b")
    except OSError as error:
        raise ResourceError(f"may not write {path}: {error.strerror}", "choose another place") from error
    vectors = VectorsFile(path, file, rows)
    try:
        with file:
            file.truncate(_HEADER_BYTES + rows * size * _ITEM if rows else 0)
            file.seek(0)
            file.write(_header(rows, size))
            yield vectors
    finally:
        if not vectors.rows:
            path.unlink(missing_ok=True)


def read_vectors(path: Path, rows: int) -> Floats:
    """The first `rows` vectors of a file, float32 [rows, size], memory-mapped.

    Raises:
        ArtifactError: absent, damaged, or shorter.
    """
    hint = "begin anew with --restart"
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER_BYTES)
        size = _size_in(head)
        found: Floats = np.memmap(path, "<f4", "r", offset=_HEADER_BYTES, shape=(rows, size))
    except (OSError, ValueError):
        raise ArtifactError(f"{path} is missing, damaged, or has less than {rows} vectors", hint) from None
    return found


def _header(rows: int, size: int) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {size}), }}"
    length = _HEADER_BYTES - len(_MAGIC) - 2
    return _MAGIC + length.to_bytes(2, "little") + text.ljust(length - 1).encode("ascii") + b"\n"


def _size_in(head: bytes) -> int:
    """Numbers of a vector, by a header that `_header` wrote. Raises ValueError where it did not."""
    inside = head.decode("latin-1").partition("'shape': (")[2].partition(")")[0].split(",")
    if len(inside) != 2 or _header(int(inside[0]), int(inside[1])) != head or int(inside[1]) <= 0:
        raise ValueError
    return int(inside[1])
