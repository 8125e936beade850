"""One safetensors file: its header read and checked without reading a weight, and a file written tensor by tensor.

Knows no model, no checkpoint and no tensor library. The format: 8 bytes little-endian header length, a JSON header
{name: {dtype, shape, data_offsets}}, then the tensors' bytes without a hole (huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from aiasst.errors import CheckpointError

LARGEST_HEADER = 100_000_000
"""Bytes; the reference implementation refuses more."""

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip

DAMAGED = "the download or the copy is damaged: fetch the file again"


@dataclass(frozen=True)
class TensorEntry:
    """What the header says of one tensor; `start` and `end` are byte offsets into the data after the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor that is to be written: name, safetensors dtype and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size of its data."""
        return math.prod(self.shape) * BITS[self.dtype] // 8


def read_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors of the file at `path` by name, after every length and offset was checked; reads the header only.

    Raises:
        CheckpointError: the file is truncated, or its header contradicts itself or the file's size.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise _damaged(path, f"has {size} bytes, too few for a header")
        (length,) = struct.unpack("<Q", prefix)
        if length > LARGEST_HEADER or 8 + length > size:
            raise _damaged(path, f"says that its header has {length} bytes, but the file has {size}")
        raw = file.read(length)
    tensors = _parse_header(path, raw)
    _check_layout(path, tensors, size - 8 - length)
    return tensors


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path.name} is not a sound safetensors file: it {what}", DAMAGED)


def _parse_header(path: Path, raw: bytes) -> dict[str, TensorEntry]:
    try:
        header = json.loads(raw.decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        raise _damaged(path, "has a header that is not JSON") from None
    if not isinstance(header, dict):
        raise _damaged(path, "has a header that is not a JSON object")
    return {name: _parse_entry(path, name, row) for name, row in header.items() if name != "__metadata__"}


def _parse_entry(path: Path, name: str, row: object) -> TensorEntry:
    if not isinstance(row, dict):
        raise _damaged(path, f"has a broken header entry for '{name}'")
    dtype, shape, offsets = row.get("dtype"), row.get("shape"), row.get("data_offsets")
    if dtype not in BITS:
        raise _damaged(path, f"gives '{name}' the unknown type {dtype!r}")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise _damaged(path, f"has a broken header entry for '{name}'")
    return TensorEntry(dtype, tuple(shape), *offsets)


def _naturals(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 2**63 for v in value)


def _check_layout(path: Path, tensors: Mapping[str, TensorEntry], data_bytes: int) -> None:
    """Every tensor has the bytes its shape needs, they follow each other without a hole, and the file ends with the last."""
    position = 0
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.end > data_bytes:
            raise _damaged(
                path, f"ends before '{name}' does ({entry.end} bytes of weights announced, {data_bytes} there)"
            )
        if entry.start != position:
            raise _damaged(path, f"has a hole or an overlap before '{name}'")
        if math.prod(entry.shape) * BITS[entry.dtype] != 8 * (entry.end - entry.start):
            raise _damaged(
                path, f"gives '{name}' {entry.end - entry.start} bytes, which is not its shape {entry.shape}"
            )
        position = entry.end
    if position != data_bytes:
        raise _damaged(path, f"has {data_bytes - position} bytes that belong to no tensor")


def write(path: Path, tensors: Iterable[PlannedTensor], data: Callable[[str], bytes | memoryview]) -> None:
    """Write a safetensors file; `data(name)` is asked for one tensor after the other, so that only one is in memory.

    Args:
        path: The file to write.
        tensors: What goes in, in this order.
        data: Gives the little-endian, row-major bytes of a tensor by its name.

    Raises:
        OSError: the file cannot be written (disk full).
        ValueError: `data` gave another number of bytes than planned.
    """
    planned = list(tensors)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for tensor in planned:
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [position, position + tensor.bytes],
        }
        position += tensor.bytes
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8 bytes, as the format asks
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in planned:
            payload = memoryview(data(tensor.name)).cast("B")
            if payload.nbytes != tensor.bytes:
                raise ValueError(f"{tensor.name}: {payload.nbytes} bytes given, {tensor.bytes} planned")
            file.write(payload)
