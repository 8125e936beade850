"""The header of a GGUF file: metadata and table of tensors, with every length checked against the file. Knows no model.

The format (version 2 and 3, little-endian): github.com/ggml-org/ggml/blob/master/docs/gguf.md. The reader of the gguf package
believes what a file says of itself, and a damaged count keeps it busy forever; so a file passes here first.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiasst.convert.sources.safetensors_file import DAMAGED
from aiasst.errors import CheckpointError, MissingExtraError

# Value type → struct format; 8 is a string, 9 an array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)
_MOST_DIMENSIONS = 4
_DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says of itself."""

    metadata: dict[str, Any]
    """Key → number, truth value or string; of arrays only how many elements they have."""
    shapes: dict[str, tuple[int, ...]]
    """Tensor name → shape, rows first."""


def read(path: Path) -> GgufHeader:
    """Read and check the header of the file at `path`; no tensor is read.

    Raises:
        CheckpointError: the file is not GGUF, is truncated, or its header contradicts itself.
        MissingExtraError: the package gguf is not installed.
    """
    with _mapped(path) as content:
        cursor = _Cursor(content)
        try:
            return _read(cursor, path)
        except (struct.error, UnicodeDecodeError) as error:
            raise _damaged(path, "ends in the middle of its header, or its header is damaged") from error


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    if path.stat().st_size == 0:  # cannot be mapped
        raise _damaged(path, "is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield content


class _Cursor:
    """A place in the file that moves on with what is read; struct.error beyond the end."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content, self.position = content, 0

    def number(self, form: str) -> Any:
        (value,) = struct.unpack_from("<" + form, self.content, self.position)
        self.position += struct.calcsize("<" + form)
        return value

    def string(self) -> str:
        length = self.number("Q")
        start = self.position
        return self.content[start : self.skip(length)].decode("utf-8")

    def skip(self, count: int) -> int:
        """Move on by `count` bytes; the new position."""
        if count > len(self.content) - self.position:
            raise struct.error("beyond the end of the file")
        self.position += count
        return self.position


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path.name} is not a sound GGUF file: it {what}", DAMAGED)


def _read(cursor: _Cursor, path: Path) -> GgufHeader:
    if cursor.content[:4] != b"GGUF":
        raise _damaged(path, "does not begin with the letters GGUF")
    cursor.skip(4)
    version = cursor.number("I")
    if version not in _VERSIONS:
        raise _damaged(path, f"has version {version}, and 2 and 3 are known")
    tensor_count, value_count = cursor.number("Q"), cursor.number("Q")
    metadata: dict[str, Any] = {}
    for _ in range(value_count):
        key = cursor.string()
        if key in metadata:
            raise _damaged(path, f"says '{key}' twice")
        metadata[key] = _value(cursor, path, key)
    if not isinstance(metadata.get("general.architecture"), str):
        raise _damaged(path, "does not say its architecture")
    tensors = [_tensor(cursor, path) for _ in range(tensor_count)]
    _check_extents(cursor, path, metadata.get("general.alignment", _DEFAULT_ALIGNMENT), tensors)
    return GgufHeader(metadata, {tensor.name: tensor.shape for tensor in tensors})


def _value(cursor: _Cursor, path: Path, key: str) -> Any:
    kind = cursor.number("I")
    if kind in _SCALARS:
        return cursor.number(_SCALARS[kind])
    if kind == _STRING:
        return cursor.string()
    if kind != _ARRAY:
        raise _damaged(path, f"has a value of the unknown type {kind} for '{key}'")
    element, count = cursor.number("I"), cursor.number("Q")
    if element in _SCALARS:
        cursor.skip(count * struct.calcsize("<" + _SCALARS[element]))
    elif element == _STRING:
        for _ in range(count):
            cursor.skip(cursor.number("Q"))
    else:
        raise _damaged(path, f"has an array of the unknown type {element} for '{key}'")
    return count


@dataclass(frozen=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


def _tensor(cursor: _Cursor, path: Path) -> _Tensor:
    name, dimensions = cursor.string(), cursor.number("I")
    if dimensions > _MOST_DIMENSIONS:
        raise _damaged(path, f"gives '{name}' {dimensions} dimensions")
    sizes = [cursor.number("Q") for _ in range(dimensions)]
    # ggml counts the fastest dimension first, everybody else last.
    return _Tensor(name, tuple(reversed(sizes)), kind=cursor.number("I"), offset=cursor.number("Q"))


def _check_extents(cursor: _Cursor, path: Path, alignment: Any, tensors: list[_Tensor]) -> None:
    """The data of each tensor lies within the file."""
    try:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    except ImportError:
        raise MissingExtraError("gguf", "convert") from None
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        raise _damaged(path, f"has the alignment {alignment}, which is no power of two")
    start = -(-cursor.position // alignment) * alignment
    known = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
    for tensor in tensors:
        if tensor.kind not in known:
            raise _damaged(path, f"has '{tensor.name}' in the unknown format {tensor.kind}")
        elements, bytes_ = known[tensor.kind]
        if tensor.shape and tensor.shape[-1] % elements:
            label = GGMLQuantizationType(tensor.kind).name
            raise _damaged(path, f"has rows of {tensor.shape[-1]} in '{tensor.name}', which {label} cannot have")
        end = start + tensor.offset + math.prod(tensor.shape) // elements * bytes_
        if end > len(cursor.content):
            raise _damaged(path, f"ends before '{tensor.name}' does ({end} bytes needed, {len(cursor.content)} there)")
