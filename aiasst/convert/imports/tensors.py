"""The tensors of a checkpoint's safetensors files, read one at a time. Knows no layout and no model."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aiasst.convert.sources.safetensors_file import DAMAGED, TensorEntry, read_header
from aiasst.errors import CheckpointError

_DTYPES: dict[str, str] = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?",
}  # fmt: skip
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True)
class _Place:
    file: Path
    start: int
    entry: TensorEntry


class Tensors:
    """Every tensor of several files by name; only headers are read until one is asked for."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._places: dict[str, _Place] = {}
        for file in files:
            header = read_header(file)
            with file.open("rb") as stream:
                (length,) = struct.unpack("<Q", stream.read(8))
            for name, entry in header.items():
                if name in self._places:
                    raise CheckpointError(f"two weight files hold the tensor '{name}'", DAMAGED)
                self._places[name] = _Place(file, 8 + length + entry.start, entry)

    def __iter__(self) -> Any:
        return iter(self._places)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def entry(self, name: str) -> TensorEntry:
        """Type and shape."""
        return self._places[name].entry

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """The bytes, memory-mapped."""
        place = self._places[name]
        size = place.entry.end - place.entry.start
        if not size:
            return np.empty(0, dtype=np.uint8)
        return np.memmap(place.file, np.uint8, mode="r", offset=place.start, shape=(size,))

    def array(self, name: str) -> npt.NDArray[Any]:
        """The tensor; floats become float32, which holds every float16 and bfloat16 exactly.

        Raises:
            CheckpointError: it is of a type that no packed weight has.
        """
        entry, raw = self.entry(name), self.raw(name)
        if entry.dtype == "BF16":
            wide = raw.view("<u2").astype(np.uint32) << 16
            return wide.view(np.float32).reshape(entry.shape)
        if entry.dtype not in _DTYPES:
            raise CheckpointError(f"'{name}' is of type {entry.dtype}, which no packed weight has", DAMAGED)
        found = raw.view(_DTYPES[entry.dtype]).reshape(entry.shape)
        return found.astype(np.float32) if entry.dtype in FLOATS else found
