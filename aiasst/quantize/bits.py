"""Small integers in bytes, the first in the lowest bits: what MatMulNBits and GatherBlockQuantized read. Knows no operator."""

from __future__ import annotations

import numpy as np

from aiasst.quantize.matrix import ByteMatrix


def pack_bits(values: ByteMatrix, bits: int) -> ByteMatrix:
    """Pack uint8 [..., count] of `bits` (2, 4, 8) bits each along the last axis → [..., ceil(count * bits / 8)].

    A last byte that is not full is filled up with zero bits.
    """
    per_byte = 8 // bits
    if per_byte == 1:
        return np.ascontiguousarray(values)
    packed = np.zeros((*values.shape[:-1], -(-values.shape[-1] // per_byte)), dtype=np.uint8)
    for place in range(per_byte):
        column = values[..., place::per_byte]
        packed[..., : column.shape[-1]] |= column << (place * bits)
    return packed


def unpack_bits(packed: ByteMatrix, bits: int, count: int) -> ByteMatrix:
    """The inverse of `pack_bits`: uint8 [..., count]."""
    per_byte = 8 // bits
    places = [(packed >> (place * bits)) & ((1 << bits) - 1) for place in range(per_byte)]
    return np.stack(places, axis=-1).reshape(*packed.shape[:-1], -1)[..., :count].astype(np.uint8)
