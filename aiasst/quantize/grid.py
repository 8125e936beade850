"""The grids that weights are rounded to, and what rounding gives: integers, scales, zero points. Knows no packing and no graph.

A row of K weights is cut into blocks. In each block  weight ≈ (value - zero point) x scale  with `value` in 0 … 2^bits - 1.
A symmetric grid has the zero point 2^(bits-1) everywhere and stores none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aiasst.quantize.matrix import ByteMatrix, FloatMatrix


@dataclass(frozen=True)
class Grid:
    """Which integers there are and which weights share a scale."""

    bits: int
    block_size: int | None
    """Consecutive weights along K that share a scale; None: the whole row (per channel)."""
    zero_point: bool = False
    narrow: bool = False
    """Leave out the lowest value, so that the grid is the same to both sides of zero."""

    @property
    def middle(self) -> int:
        """The value that stands for zero in a symmetric grid."""
        return 1 << (self.bits - 1)

    @property
    def lowest(self) -> int:
        """Smallest value in use."""
        return 1 if self.narrow else 0

    @property
    def highest(self) -> int:
        """Largest value in use."""
        return (1 << self.bits) - 1

    def blocks(self, k: int) -> int:
        """Blocks in a row of `k` weights; the last may be shorter."""
        return 1 if self.block_size is None else -(-k // self.block_size)


@dataclass(frozen=True)
class Quantized:
    """A matrix on a grid."""

    grid: Grid
    values: ByteMatrix
    """uint8 [N, K]."""
    scales: FloatMatrix
    """float32 [N, blocks]."""
    zero_points: ByteMatrix | None = None
    """uint8 [N, blocks]; None when the grid is symmetric."""

    def dequantize(self) -> FloatMatrix:
        """The weights this stands for, float32 [N, K]."""
        k = self.values.shape[1]
        zeros: ByteMatrix | int = self.grid.middle
        if self.zero_points is not None:
            zeros = spread(self.zero_points, self.grid, k)
        weights: FloatMatrix = self.values.astype(np.float32) - zeros
        weights *= spread(self.scales, self.grid, k)
        return weights


def spread(per_block: npt.NDArray[Any], grid: Grid, k: int) -> npt.NDArray[Any]:
    """One number a block → one a weight: [N, blocks] → [N, K] ([N, 1], which broadcasts, for a per-channel grid)."""
    if grid.block_size is None:
        return per_block
    return np.repeat(per_block, grid.block_size, axis=1)[:, :k]


def round_blocks(
    chunk: npt.NDArray[np.float32],
    scales: FloatMatrix,
    zero_points: ByteMatrix | None,
    grid: Grid,
) -> npt.NDArray[np.float32]:
    """The nearest grid value of each weight, as float32 [rows, blocks, block] (whole numbers within the grid).

    `scales` [rows, blocks] must not be zero.
    """
    values: npt.NDArray[np.float32] = chunk * np.reciprocal(scales)[:, :, None]
    np.rint(values, out=values)
    values += np.float32(grid.middle) if zero_points is None else zero_points[:, :, None]
    values.clip(grid.lowest, grid.highest, out=values)
    return values
