"""Round to nearest: the scale of a block follows from its extreme weight, and each weight goes to the nearest grid value.

No data needed. A symmetric grid of b bits has 2^(b-1) steps below zero and one fewer above, so the scale is taken such that
the weight of the largest magnitude, whatever its sign, lands exactly on the lowest value (the scale may be negative). All
values are used, which at 4 bits leaves a fifth less squared error than covering both sides with 2^(b-1) - 1 steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from aiasst.quantize.algorithms import InputStatistics, Need
from aiasst.quantize.chunks import Blocks, quantize_in_chunks
from aiasst.quantize.grid import Grid, Quantized, round_blocks
from aiasst.quantize.matrix import ByteMatrix, FloatMatrix

NEEDS: Need = "nothing"
EQUALIZES = False
PROPAGATES = False


def quantize(weight: FloatMatrix, grid: Grid, statistics: InputStatistics | None = None) -> Quantized:
    """Bring float32 [N, K] onto `grid`; `statistics` are not used."""

    def round_chunk(chunk: Blocks) -> tuple[Blocks, FloatMatrix, ByteMatrix | None]:
        scales, zeros = extreme_scales(chunk, grid)
        return round_blocks(chunk, scales, zeros, grid), scales, zeros

    return quantize_in_chunks(weight, grid, round_chunk)


def extreme_scales(chunk: Blocks, grid: Grid) -> tuple[FloatMatrix, ByteMatrix | None]:
    """Scales [rows, blocks] that follow from the extremes of the blocks, and zero points when the grid has them."""
    highest, lowest = chunk.max(axis=2), chunk.min(axis=2)
    if grid.zero_point:
        # Zero must lie on the grid: a padded or pruned weight has to stay zero.
        return _covering_range(np.minimum(lowest, 0), np.maximum(highest, 0), grid)
    if grid.narrow:
        return _usable(np.maximum(highest, -lowest) / (grid.middle - 1)), None
    return _usable(np.where(highest > -lowest, highest, lowest) / -grid.middle), None


def _covering_range(lowest: FloatMatrix, highest: FloatMatrix, grid: Grid) -> tuple[FloatMatrix, ByteMatrix]:
    scales = _usable((highest - lowest) / grid.highest)
    zeros = np.rint(-lowest / scales).clip(0, grid.highest)
    return scales, zeros.astype(np.uint8)


def _usable(scales: npt.NDArray[Any]) -> FloatMatrix:
    """The scales, with 1 for a block so close to zero that its scale has no reciprocal: it becomes zeros."""
    return np.where(np.abs(scales) < np.finfo(np.float32).tiny * 4, np.float32(1), scales).astype(np.float32)
