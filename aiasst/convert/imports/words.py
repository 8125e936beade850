"""Small integers out of 32-bit words, the first in the lowest bits: how packed checkpoints store them. Knows no checkpoint."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.int32]

BITS = (2, 3, 4, 8)
"""What can be read. Three bits run on from word to word (32 values in 3 words); the others fill each word."""

# Three bits are taken apart bit by bit, eight bytes for each three bits: not more rows than this at once.
_ROWS_AT_ONCE = 256


def words_of(count: int, bits: int) -> int:
    """Words that `count` values of `bits` bits take."""
    return -(-count * bits // 32)


def integers(words: Words, bits: int, count: int) -> Bytes:
    """Unpack int32 [rows, words] along the last axis → uint8 [rows, count], 0 … 2^bits - 1.

    Args:
        words: The packed rows.
        bits: One of BITS.
        count: Values a row; `words_of(count, bits)` words hold them.
    """
    raw = np.ascontiguousarray(words).astype("<i4", copy=False).view(np.uint8)
    if bits == 8:
        return raw[:, :count]
    if bits == 3:
        return _across_words(raw, bits, count)
    per_byte, mask = 8 // bits, (1 << bits) - 1
    values = np.empty((len(raw), raw.shape[1] * per_byte), dtype=np.uint8)
    for place in range(per_byte):
        values[:, place::per_byte] = (raw >> (place * bits)) & mask
    return values[:, :count]


def _across_words(raw: Bytes, bits: int, count: int) -> Bytes:
    values = np.empty((len(raw), count), dtype=np.uint8)
    weights = (1 << np.arange(bits)).astype(np.uint8)
    for start in range(0, len(raw), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        single = np.unpackbits(raw[rows], axis=1, count=count * bits, bitorder="little")
        values[rows] = single.reshape(-1, count, bits) @ weights
    return values


def plus_one(words: Words, bits: int) -> Words:
    """Each value of the packed words plus one, the way it was taken away: from the word as a whole, borrowing.

    A stored zero point of 2^bits - 1 stands for zero and has borrowed one from its neighbour, so the sum has to carry. Three
    bits, which cross words, are added to value by value after unpacking instead (see gptq).
    """
    ones = sum(1 << place for place in range(0, 32, bits))
    unsigned: npt.NDArray[Any] = np.ascontiguousarray(words).view(np.uint32)
    with np.errstate(over="ignore"):
        summed: Words = (unsigned + np.uint32(ones)).view(np.int32)
    return summed
