"""The arrays of the KV cache: rows of equal capacity, and what fits under a memory ceiling. Knows no request.

One array a tensor (keys and values of every layer), [slots, kv_heads, capacity, head_dim]: a row is a slot, contiguous in
memory, and so is any run of rows. Memory is taken from the system as rows are written, not when the arrays are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aiasst.errors import ResourceError

Array = npt.NDArray[Any]

SMALLEST_CAPACITY = 256
WEIGHTS_IN_MEMORY = 1.2
"""Memory that ONNX Runtime takes for the weights, by their size on disk: prepacking pads what it copies (measured)."""


@dataclass(frozen=True)
class CacheShape:
    """What one token takes in the cache."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: np.dtype[Any]

    @property
    def bytes_per_token(self) -> int:
        """Keys and values of all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype.itemsize


@dataclass(frozen=True)
class Budget:
    """How large the cache may become: `slots` rows of up to `context` tokens, `ceiling` bytes (None: no limit)."""

    bytes_per_token: int
    slots: int
    context: int
    ceiling: int | None

    @property
    def longest(self) -> int:
        """Tokens that a sequence may have, when it is alone."""
        return self.context if self.ceiling is None else min(self.context, self.ceiling // self.bytes_per_token)

    def capacity_for(self, tokens: int) -> int:
        """The bucket for `tokens`: 256, 512, 1024, …, at most `longest`."""
        capacity = SMALLEST_CAPACITY
        while capacity < tokens:
            capacity *= 2
        return min(capacity, self.longest)

    def slots_for(self, capacity: int) -> int:
        """Rows of this capacity that fit, at most `slots`."""
        if self.ceiling is None:
            return self.slots
        return min(self.slots, self.ceiling // (self.bytes_per_token * capacity))


def budget_under(
    ceiling: int | None, *, weight_bytes: int, working_bytes: int, shape: CacheShape, slots: int, context: int
) -> Budget:
    """What a memory ceiling leaves for the cache beside weights (bytes on disk) and working memory.

    Raises:
        ResourceError: not even one short sequence fits; the message has the numbers.
    """
    if ceiling is None:
        return Budget(shape.bytes_per_token, slots, context, None)
    taken = int(weight_bytes * WEIGHTS_IN_MEMORY) + working_bytes
    budget = Budget(shape.bytes_per_token, slots, context, max(0, ceiling - taken))
    least = min(SMALLEST_CAPACITY, context)
    if budget.longest < least:
        raise ResourceError(
            f"the memory ceiling is {_mib(ceiling)}: the model takes {_mib(taken)}, and one sequence of {least} tokens "
            f"{_mib(least * shape.bytes_per_token)} more",
            "raise memory_ceiling_bytes in device.json, or take a smaller format: aiasst quantize --bits 4 --cache int8",
        )
    return budget


class KVCache:
    """The arrays, and whole rows of them: view, copy, exchange, make room."""

    def __init__(self, shape: CacheShape, slots: int, capacity: int) -> None:
        self.shape = shape
        self.slots = slots
        self.capacity = capacity
        self._arrays = [self._new(slots, capacity) for _ in range(2 * shape.layers)]
        self._views: dict[tuple[int, int], tuple[Array, ...]] = {}

    @property
    def bytes(self) -> int:
        """Memory that the arrays may take."""
        return self.slots * self.capacity * self.shape.bytes_per_token

    def rows(self, first: int, count: int) -> tuple[Array, ...]:
        """Views of `count` rows from `first` on, one a tensor; the same objects every time, until `resize`."""
        key = (first, count)
        if key not in self._views:
            self._views[key] = tuple(array[first : first + count] for array in self._arrays)
        return self._views[key]

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of row `source` to row `target`."""
        for array in self._arrays:
            array[target, :, :length] = array[source, :, :length]

    def swap(self, first: int, second: int, first_length: int, second_length: int) -> None:
        """Exchange two rows, of which the first so many tokens hold something."""
        for array in self._arrays:
            kept = array[first, :, :first_length].copy()
            array[first, :, :second_length] = array[second, :, :second_length]
            array[second, :, :first_length] = kept

    def resize(self, slots: int, capacity: int, lengths: Sequence[int]) -> None:
        """Change the number of rows and their capacity; row `i` keeps its first `lengths[i]` tokens, later rows are lost."""
        self._views.clear()
        for index, old in enumerate(self._arrays):
            new = self._new(slots, capacity)
            for row, length in enumerate(lengths[:slots]):
                new[row, :, :length] = old[row, :, :length]
            # One tensor at a time, so that old and new together are never twice the cache.
            self._arrays[index] = new
        self.slots, self.capacity = slots, capacity

    def _new(self, slots: int, capacity: int) -> Array:
        shape = (slots, self.shape.kv_heads, capacity, self.shape.head_dim)
        try:
            return np.empty(shape, self.shape.dtype)
        except MemoryError:
            raise ResourceError(
                f"no memory for a cache of {slots} sequences of {capacity} tokens",
                "use fewer slots, or shorter answers",
            ) from None


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
