"""A large matrix brought onto a grid chunk by chunk, on several cores. Knows no algorithm: its caller does."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from aiasst.quantize.grid import Grid, Quantized
from aiasst.quantize.matrix import ByteMatrix, FloatMatrix, copy_matrix

Blocks = npt.NDArray[np.float32]
"""Weights cut into blocks: float32 [rows, blocks, block]."""

RoundChunk = Callable[[Blocks], tuple[Blocks, FloatMatrix, ByteMatrix | None]]
"""[rows, blocks, block] → whole numbers on the grid of the same shape, scales and zero points [rows, blocks]."""

# Weights worked on at once: 1 MB of float32 stays in a core's cache, so that many passes over it are cheap.
_CHUNK_ELEMENTS = 1 << 18
# A row of a transposed weight is a column of the file: fewer at once would read a page for a few numbers.
_FEWEST_ROWS = 64
# numpy lets other threads run while it computes; beyond this many the memory bus is the limit.
_THREADS = min(4, os.cpu_count() or 1)


def quantize_in_chunks(weight: FloatMatrix, grid: Grid, round_chunk: RoundChunk) -> Quantized:
    """Apply `round_chunk` to all rows of [N, K]; the weight may be a memory-mapped or transposed view and is never copied whole."""
    n, k = weight.shape
    values = np.empty((n, k), dtype=np.uint8)
    scales = np.empty((n, grid.blocks(k)), dtype=np.float32)
    zero_points = np.empty(scales.shape, dtype=np.uint8) if grid.zero_point else None

    def work(rows: slice) -> None:
        # A weight that is not finite shows in its scale; whoever asked for the scales looks there.
        with np.errstate(invalid="ignore", over="ignore"):
            rounded, scales[rows], zeros = round_chunk(_blocks(weight, rows, grid))
            values[rows] = rounded.reshape(len(rounded), -1)[:, :k]
        if zero_points is not None and zeros is not None:
            zero_points[rows] = zeros

    step = max(_FEWEST_ROWS, _CHUNK_ELEMENTS // k)
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(work, (slice(start, min(start + step, n)) for start in range(0, n, step))))
    return Quantized(grid, values, scales, zero_points)


def _blocks(weight: FloatMatrix, rows: slice, grid: Grid) -> Blocks:
    """A fresh copy of some rows, cut into blocks, with zeros where the last block ends early."""
    k = weight.shape[1]
    blocks, block = grid.blocks(k), grid.block_size or k
    chunk = np.zeros((rows.stop - rows.start, blocks * block), dtype=np.float32)
    copy_matrix(weight[rows], chunk[:, :k])
    return chunk.reshape(-1, blocks, block)
