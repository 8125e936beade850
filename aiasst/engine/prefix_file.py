"""Keys and values of token sequences as a file, in the layout of safetensors. Knows no engine, no store and no text.

    8 bytes    length of the header
    header     JSON: the names, types, shapes and places of the tensors, and under `__metadata__` the version, the model's
               hash (`ModelFolder.identity`), the format of the cache and the sha256 of all the rest
    tokens     int64 [N]: of all segments, one behind the other
    lengths    int64 [S]: tokens of each segment
    parents    int64 [S]: the segment that each goes on from, an earlier one; -1 for the first of a sequence
    cache.0 …  [kv_heads, N, head_dim] of the cache's own type, in the order of `signature.cache_pairs`

A header has one spelling: what another would be is computed and compared, so that nothing in it is taken on trust. Keys and
values of another model would give wrong answers, so the hash decides and not the name. Layout: https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from aiasst.artifacts.document import written_whole
from aiasst.artifacts.model_folder import disk_errors, require_free_disk
from aiasst.engine.cache import CacheShape
from aiasst.errors import ArtifactError, ResourceError

Ids = npt.NDArray[np.int64]
Array = npt.NDArray[Any]

FORMAT: Final = "aiasst prefixes"
VERSION: Final = "1"
MOST_PIECES: Final = 4096
"""In one file: to put a chain of them together takes its square of steps."""
_TYPES = {"float32": "F32", "float16": "F16", "int8": "I8", "uint8": "U8", "float64": "F64"}
_LARGEST_HEADER = 2**20
_PIECE = 2**20
"""Bytes read at once of what is only hashed."""
_NO_HASH = "0" * 64
_HINT = "it is written anew when it is saved the next time"
_REMEDY = "free some space, or choose another place"


@dataclass(frozen=True)
class Piece:
    """Some tokens of a sequence, with their keys and values."""

    tokens: Ids
    parent: int
    """Number of the piece it goes on from, an earlier one; -1: none."""
    arrays: Sequence[Array]
    """Per cache tensor [kv_heads, at least as many tokens, head_dim]."""


def is_prefix_file(path: Path) -> bool:
    """Whether this looks like a file that `write` wrote, by anybody and for any model."""
    try:
        with path.open("rb") as file:
            return f'"format":"{FORMAT}"'.encode() in file.read(512)
    except OSError:
        return False


def write(path: Path, pieces: Sequence[Piece], *, model: str, shape: CacheShape, force: bool = False) -> int:
    """Write the file, whole or not at all; gives its bytes. An older one of this kind is replaced.

    Raises:
        ArtifactError: there is something else at `path`, and `force` is not set.
        ResourceError: the place cannot be written, or the disk is full.
    """
    if path.is_dir() or (path.exists() and not force and not is_prefix_file(path)):
        raise ArtifactError(f"{path} is no file of keys and values, so it is not replaced", "choose another name")
    tokens = np.concatenate([piece.tokens for piece in pieces]).astype("<i8")
    table = np.array([[len(piece.tokens) for piece in pieces], [piece.parent for piece in pieces]], "<i8")
    blank = _header(model, shape, len(tokens), len(pieces), _NO_HASH)
    size = len(blank) + tokens.nbytes + table.nbytes + len(tokens) * shape.bytes_per_token
    require_free_disk(path, size, _REMEDY)
    try:
        with written_whole(path) as temporary, disk_errors(path, _REMEDY), temporary.open("wb") as file:
            digest = hashlib.sha256(blank)
            file.write(blank)
            for part in _parts(tokens, table, pieces, shape):
                digest.update(part)
                file.write(part)
            file.seek(0)
            file.write(_header(model, shape, len(tokens), len(pieces), digest.hexdigest()))
    except OSError as error:
        raise ResourceError(f"may not write {path}: {error.strerror}", "choose another place") from error
    return size


def read(path: Path, *, model: str, shape: CacheShape, room: Callable[[int, int], int]) -> list[Piece]:
    """Read the pieces; a part of the last one, and none behind it, where there is no room for more.

    Args:
        path: a file that `write` wrote.
        model: the hash of the model that asks.
        shape: the cache that it has.
        room: asked once, before memory is taken, how many of so many tokens in so many pieces may be read.

    Raises:
        ArtifactError: absent or unreadable, damaged, of another version, model or format of the cache.
    """
    try:
        with path.open("rb") as file:
            return _read(file, path.name, model, shape, room)
    except FileNotFoundError:
        raise ArtifactError(f"there is no file {path}", _HINT) from None
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}", _HINT) from None


def _read(
    file: BufferedReader, name: str, model: str, shape: CacheShape, room: Callable[[int, int], int]
) -> list[Piece]:
    header, metadata, tokens, segments = _checked_header(file, name)
    if metadata["version"] != VERSION:
        raise ArtifactError(f"{name} has version {metadata['version']}, this program reads {VERSION}", _HINT)
    if metadata["model"] != model:
        raise ArtifactError(f"{name} has the keys and values of another model", _HINT)
    if metadata["cache"] != _format_of(shape):
        raise ArtifactError(f"{name} has a cache of {metadata['cache']}, this model's is {_format_of(shape)}", _HINT)
    size = len(header) + 8 * tokens + 16 * segments + tokens * shape.bytes_per_token
    if os.fstat(file.fileno()).st_size != size or header != _header(model, shape, tokens, segments, metadata["sha256"]):
        raise _damaged(name)
    wanted = min(tokens, room(tokens, segments))
    if wanted < 1:
        return []
    source = _Hashed(file, _header(model, shape, tokens, segments, _NO_HASH))
    ids = source.integers(tokens, wanted)
    lengths, parents = (source.integers(segments, segments).tolist() for _ in range(2))
    backwards = all(-1 <= parent < number for number, parent in enumerate(parents))
    if min(lengths) < 1 or sum(lengths) != tokens or not backwards:
        raise _damaged(name)
    counts = _counts(lengths, wanted)
    arrays = _arrays(source, counts, tokens - wanted, shape)
    if source.digest.hexdigest() != metadata["sha256"]:
        raise _damaged(name)
    ends = np.cumsum(counts, dtype=np.int64)
    return [
        Piece(ids[end - count : end], parents[number], [array[number] for array in arrays])
        for number, (count, end) in enumerate(zip(counts, ends.tolist(), strict=True))
    ]


def _arrays(source: _Hashed, counts: Sequence[int], left: int, shape: CacheShape) -> list[list[Array]]:
    """Per cache tensor and piece [kv_heads, count, head_dim]; `left` tokens behind them are read over."""
    arrays = []
    for _ in range(2 * shape.layers):
        pieces: list[Array] = [np.empty((shape.kv_heads, count, shape.head_dim), shape.dtype) for count in counts]
        for head in range(shape.kv_heads):
            for piece in pieces:
                source.fill(piece[head])
            source.skip(left * shape.head_dim * shape.dtype.itemsize)
        arrays.append(pieces)
    return arrays


def _counts(lengths: Sequence[int], wanted: int) -> list[int]:
    """How many tokens of each piece are read when `wanted` are in all."""
    counts: list[int] = []
    for length in lengths:
        if wanted == 0:
            break
        counts.append(min(length, wanted))
        wanted -= counts[-1]
    return counts


class _Hashed:
    """A file whose size was checked, read once from where it stands, every byte hashed."""

    def __init__(self, file: BufferedReader, begin: bytes) -> None:
        self.digest = hashlib.sha256(begin)
        self._file = file

    def fill(self, array: Array) -> None:
        """The next bytes into a contiguous array."""
        view = array.data.cast("B")
        if self._file.readinto(view) != len(view):
            raise OSError(0, "it ends too early")
        self.digest.update(view)

    def skip(self, size: int) -> None:
        """Over so many bytes."""
        while size > 0:
            piece = self._file.read(min(size, _PIECE))
            if not piece:
                raise OSError(0, "it ends too early")
            self.digest.update(piece)
            size -= len(piece)

    def integers(self, count: int, wanted: int) -> Ids:
        """The first `wanted` of `count` integers."""
        array = np.empty(wanted, "<i8")
        self.fill(array)
        self.skip(8 * (count - wanted))
        return array.astype(np.int64, copy=False)


def _checked_header(file: BufferedReader, name: str) -> tuple[bytes, dict[str, str], int, int]:
    """The header's bytes, its metadata, and how many tokens and segments it tells of."""
    begin = file.read(8)
    length = int.from_bytes(begin, "little")
    if len(begin) < 8 or length > _LARGEST_HEADER:
        raise _damaged(name)
    text = file.read(length)
    try:
        data = json.loads(text)
        metadata = data["__metadata__"]
        told = {key: metadata[key] for key in ("format", "version", "model", "cache", "sha256")}
        (tokens,), (segments,) = data["tokens"]["shape"], data["lengths"]["shape"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _damaged(name) from None
    whole = all(isinstance(count, int) and 0 < count < 2**48 for count in (tokens, segments))
    whole = whole and segments <= MOST_PIECES and all(isinstance(value, str) for value in told.values())
    if told["format"] != FORMAT or not whole:
        raise _damaged(name)
    return begin + text, told, tokens, segments


def _header(model: str, shape: CacheShape, tokens: int, segments: int, digest: str) -> bytes:
    """The only header that such a file has, its length before it."""
    metadata = {"format": FORMAT, "version": VERSION, "model": model, "cache": _format_of(shape), "sha256": digest}
    entries: dict[str, Any] = {"__metadata__": metadata}
    place = 0
    for name, kind, dimensions, itemsize in _tensors(shape, tokens, segments):
        end = place + int(np.prod(dimensions, dtype=object)) * itemsize
        entries[name] = {"dtype": kind, "shape": list(dimensions), "data_offsets": [place, end]}
        place = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _tensors(shape: CacheShape, tokens: int, segments: int) -> Iterator[tuple[str, str, tuple[int, ...], int]]:
    """Name, type, shape and bytes an element of every tensor, in order."""
    yield "tokens", "I64", (tokens,), 8
    yield "lengths", "I64", (segments,), 8
    yield "parents", "I64", (segments,), 8
    for number in range(2 * shape.layers):
        dimensions = shape.kv_heads, tokens, shape.head_dim
        yield f"cache.{number}", _TYPES[shape.dtype.name], dimensions, shape.dtype.itemsize


def _parts(tokens: Array, table: Array, pieces: Sequence[Piece], shape: CacheShape) -> Iterator[memoryview]:
    """The bytes behind the header."""
    yield tokens.data.cast("B")
    yield table.data.cast("B")
    for number in range(2 * shape.layers):
        for head in range(shape.kv_heads):
            for piece in pieces:
                yield np.ascontiguousarray(piece.arrays[number][head, : len(piece.tokens)]).data.cast("B")


def _format_of(shape: CacheShape) -> str:
    return f"{shape.layers} layers, {shape.kv_heads} heads of {shape.head_dim}, {shape.dtype.name}"


def _damaged(name: str) -> ArtifactError:
    return ArtifactError(f"{name} is damaged, or no file of keys and values", _HINT)
