"""Activations between two layers on disk: one file a batch, read and written plainly. Knows no graph and no chain.

A mapped file would count as memory of the process, so nothing is mapped; what the system keeps of the files in its own
cache it gives back when memory is short.

    FOLDER/
    ├── 0000.bin, 0001.bin, …   a line of JSON that tells the arrays' names, types and shapes, then their bytes one after another
    └── complete.json           the files' sizes; written last, so that a store without it is known to be unfinished
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from aiasst.artifacts.document import write_text_atomically

Array = npt.NDArray[Any]

_MARKER = "complete.json"


class ActivationStore:
    """The values at one boundary of one chain, batch by batch."""

    def __init__(self, folder: Path) -> None:
        """A store in `folder`, which need not exist."""
        self.folder = folder

    @property
    def is_complete(self) -> bool:
        """Whether every batch was written and none was cut short."""
        try:
            sizes = json.loads((self.folder / _MARKER).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return all(_size(self.folder / name) == size for name, size in sizes.items())

    def write(self, batch: int, arrays: Mapping[str, Array]) -> None:
        """Write the arrays of batch number `batch` (from 0), of any types and shapes. Raises OSError when the disk is full."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / _MARKER).unlink(missing_ok=True)
        index = [[name, array.dtype.str, list(array.shape)] for name, array in arrays.items()]
        with self._file(batch).open("wb", buffering=0) as file:
            _write_all(file, json.dumps(index).encode() + b"\n")
            for array in arrays.values():
                _write_all(file, np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    def read(self, batch: int, names: Sequence[str] | None = None) -> dict[str, Array]:
        """The arrays of a batch: those in `names`, or all. Raises OSError: there is no such batch; KeyError: no such array."""
        wanted = None if names is None else set(names)
        found: dict[str, Array] = {}
        with self._file(batch).open("rb") as file:
            for name, kind, shape in json.loads(file.readline()):
                array = np.empty(shape, np.dtype(kind))
                if wanted is not None and name not in wanted:
                    file.seek(array.nbytes, 1)
                elif array.nbytes and file.readinto(array.reshape(-1).view(np.uint8).data) != array.nbytes:
                    raise OSError(f"{self._file(batch)} was cut short")
                else:
                    found[name] = array
        return found if names is None else {name: found[name] for name in names}

    def complete(self) -> None:
        """Everything is written: from here on `is_complete` holds, in later runs as well."""
        sizes = {file.name: _size(file) for file in self._files()}
        write_text_atomically(self.folder / _MARKER, json.dumps(sizes))

    def remove(self) -> None:
        """Delete the store; the marker goes first, so that half a store never looks complete."""
        (self.folder / _MARKER).unlink(missing_ok=True)
        for file in self._files():
            file.unlink()
        if self.folder.is_dir():
            self.folder.rmdir()

    def _file(self, batch: int) -> Path:
        return self.folder / f"{batch:04}.bin"

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.bin"))


def _write_all(file: BinaryIO, data: bytes | memoryview) -> None:
    """Unbuffered: one copy less of what may be gigabytes."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _size(file: Path) -> int:
    """Bytes of `file`, -1 where it is missing."""
    return file.stat().st_size if file.is_file() else -1
