"""Small ONNX models written without the package `onnx`, which the light runtime does not have. Knows no operator.

ONNX files are Protocol Buffers. Field numbers are those of onnx.proto (IR version 10), wire types those of the Protocol
Buffers encoding: a key `field << 3 | type`, then a varint (type 0), four bytes (type 5), or a length and that many bytes (2).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Piece = bytes | memoryview
Attribute = int | float | str | Sequence[int] | Array

_IR_VERSION = 10
_VARINT, _BYTES, _FOUR_BYTES = 0, 2, 5
# TensorProto.DataType
_DTYPES: dict[np.dtype[Any], int] = {
    np.dtype(np.float32): 1, np.dtype(np.uint8): 2, np.dtype(np.int8): 3, np.dtype(np.int32): 6, np.dtype(np.int64): 7,
    np.dtype(np.bool_): 9, np.dtype(np.float16): 10,
}  # fmt: skip
# AttributeProto.AttributeType
_FLOAT, _INT, _STRING, _TENSOR, _INTS = 1, 2, 3, 4, 7


@dataclass(frozen=True)
class Node:
    """An operator's use: inputs and outputs by name, attributes by name."""

    operator: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    domain: str = ""


@dataclass(frozen=True)
class Value:
    """An input or output of the graph; a dimension is a number, or a symbol's name."""

    name: str
    dtype: npt.DTypeLike
    shape: Sequence[int | str]


def model_bytes(
    nodes: Sequence[Node],
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    initializers: Mapping[str, Array],
    opsets: Mapping[str, int],
) -> bytes:
    """A ModelProto (initializers inside) of at most 2 GB; `opsets` maps a domain ("" is ONNX's own) to its version.

    Raises:
        KeyError: an array has a type that is not known here.
    """
    graph: list[Piece] = [_bytes(1, _node(node)) for node in nodes]
    graph.append(_text(2, "graph"))
    for name, array in initializers.items():
        tensor = _tensor(array, name)
        graph += [_head(5, _size(tensor)), *tensor]
    graph += [_bytes(11, _value(value)) for value in inputs]
    graph += [_bytes(12, _value(value)) for value in outputs]
    imports = [_bytes(8, _text(1, domain) + _number(2, version)) for domain, version in opsets.items()]
    # The weights are copied here and nowhere else.
    return b"".join([_number(1, _IR_VERSION), _text(2, "aiasst"), _head(7, _size(graph)), *graph, *imports])


def _node(node: Node) -> bytes:
    parts = [_text(1, name) for name in node.inputs] + [_text(2, name) for name in node.outputs]
    parts.append(_text(4, node.operator))
    parts += [_bytes(5, _attribute(name, value)) for name, value in node.attributes.items()]
    return b"".join([*parts, _text(7, node.domain)])


def _attribute(name: str, value: Attribute) -> bytes:
    match value:
        case int():
            kind, content = _INT, _number(3, value)
        case float():
            kind, content = _FLOAT, _key(2, _FOUR_BYTES) + struct.pack("<f", value)
        case str():
            kind, content = _STRING, _text(4, value)
        case np.ndarray():
            kind, content = _TENSOR, _bytes(5, b"".join(_tensor(value)))
        case _:
            kind, content = _INTS, b"".join(_number(8, item) for item in value)
    return _text(1, name) + content + _number(20, kind)


def _tensor(array: Array, name: str = "") -> list[Piece]:
    """Its pieces, the last of which is the array's own memory."""
    dims = [_number(1, size) for size in array.shape]
    # raw_data is little-endian, whatever the machine.
    raw = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data
    return [*dims, _number(2, _DTYPES[array.dtype]), _text(8, name), _head(9, raw.nbytes), raw]


def _value(value: Value) -> bytes:
    dims = (_number(1, size) if isinstance(size, int) else _text(2, size) for size in value.shape)
    shape = b"".join(_bytes(1, dim) for dim in dims)
    tensor_type = _number(1, _DTYPES[np.dtype(value.dtype)]) + _bytes(2, shape)
    return _text(1, value.name) + _bytes(2, _bytes(1, tensor_type))


def _number(number: int, value: int) -> bytes:
    return _key(number, _VARINT) + _varint(value)


def _text(number: int, value: str) -> bytes:
    return _bytes(number, value.encode())


def _bytes(number: int, payload: bytes) -> bytes:
    return _head(number, len(payload)) + payload


def _head(number: int, size: int) -> bytes:
    """What stands before `size` bytes."""
    return _key(number, _BYTES) + _varint(size)


def _size(pieces: Sequence[Piece]) -> int:
    return sum(len(piece) for piece in pieces)


def _key(number: int, wire_type: int) -> bytes:
    return _varint(number << 3 | wire_type)


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; negative numbers as 64-bit two's complement."""
    value &= 0xFFFF_FFFF_FFFF_FFFF
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)
