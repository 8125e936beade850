"""Round to nearest with a searched scale: in each block the scale that gives the least squared error of the weights.

A scale smaller than the extreme weight asks for clips that weight and rounds all the others more finely. A few multiples of
the round-to-nearest scale are tried, itself among them, so a block is never worse off. When `statistics` are given, the error
of an input channel is weighted by its mean square, since that is what it does to the product's output (the diagonal of the
layer's Hessian). The search is that of OMSE (Choukroun et al. 2019, arXiv:1902.06822) over a grid of candidates.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from aiasst.quantize.algorithms import InputStatistics, Need
from aiasst.quantize.algorithms.rtn import extreme_scales
from aiasst.quantize.chunks import Blocks, quantize_in_chunks
from aiasst.quantize.grid import Grid, Quantized, round_blocks
from aiasst.quantize.matrix import ByteMatrix, FloatMatrix

NEEDS: Need = "nothing"
EQUALIZES = False
PROPAGATES = False

# Where the best multiple lies for trained weights: the fewer bits, the more clipping pays.
_CANDIDATES: dict[int, npt.NDArray[np.float32]] = {
    2: np.array([0.4, 0.48, 0.54, 0.6, 0.66, 0.72, 0.78, 0.85, 0.92, 1.08], dtype=np.float32),
    4: np.array([0.78, 0.82, 0.86, 0.9, 0.93, 0.96, 1.03, 1.06, 1.1, 1.14], dtype=np.float32),
    8: np.array([1.015, 1.03, 1.06], dtype=np.float32),
}


def quantize(weight: FloatMatrix, grid: Grid, statistics: InputStatistics | None = None) -> Quantized:
    """Bring float32 [N, K] onto `grid`."""
    importance = None if statistics is None else _blocked(statistics.energy, grid)

    def round_chunk(chunk: Blocks) -> tuple[Blocks, FloatMatrix, ByteMatrix | None]:
        scales, zeros = extreme_scales(chunk, grid)
        scales = best_scales(chunk, scales, zeros, grid, importance)
        return round_blocks(chunk, scales, zeros, grid), scales, zeros

    return quantize_in_chunks(weight, grid, round_chunk)


def best_scales(
    chunk: Blocks, scales: FloatMatrix, zeros: ByteMatrix | None, grid: Grid, importance: FloatMatrix | None = None
) -> FloatMatrix:
    """The candidate scale of least (weighted) squared error for each block of [rows, blocks, block]."""
    best = scales.copy()
    least = _errors(chunk, scales, zeros, grid, importance)
    for multiple in _CANDIDATES[grid.bits]:
        candidate = scales * multiple
        errors = _errors(chunk, candidate, zeros, grid, importance)
        better = errors < least
        best[better], least[better] = candidate[better], errors[better]
    return best


def _errors(
    chunk: Blocks, scales: FloatMatrix, zeros: ByteMatrix | None, grid: Grid, importance: FloatMatrix | None
) -> FloatMatrix:
    error = round_blocks(chunk, scales, zeros, grid)
    error -= np.float32(grid.middle) if zeros is None else zeros[:, :, None]
    error *= scales[:, :, None]
    error -= chunk
    squares: FloatMatrix
    if importance is None:
        squares = np.einsum("rbk,rbk->rb", error, error)
    else:
        squares = np.einsum("rbk,rbk,bk->rb", error, error, importance)
    return squares


def _blocked(energy: npt.NDArray[np.float32], grid: Grid) -> FloatMatrix:
    """[K] → [blocks, block], with zeros where the last block ends early."""
    blocks, block = grid.blocks(len(energy)), grid.block_size or len(energy)
    padded = np.zeros(blocks * block, dtype=np.float32)
    padded[: len(energy)] = energy
    return padded.reshape(blocks, block)
