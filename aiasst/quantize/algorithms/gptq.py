"""GPTQ: channels are rounded one after another, and those still to come make up for the error of each; then descent refines.

    1. scales: the searched ones of `mse`, weighted by the energy of the inputs, fixed before any rounding (static groups)
    2. channels in the order of falling energy; the error of each, divided by the inverse Hessian's Cholesky factor, is
       subtracted from the channels that are not rounded yet
    3. coordinate descent over integers and scales on the same error (`corrections.descent`)

8-bit grids are left to `mse`: their rounding errors are far below those of the activations. So is a weight of which no Hessian
is known, such as an embedding that is only looked up.

Source: Frantar et al. 2022, GPTQ (arXiv:2210.17323); static groups and activation order as in its reference implementation.
"""

from __future__ import annotations

import numpy as np
import torch

from aiasst.quantize.algorithms import InputStatistics, Need, mse
from aiasst.quantize.corrections.descent import Rounding, descend
from aiasst.quantize.grid import Grid, Quantized
from aiasst.quantize.hessian import Factors, to_device
from aiasst.quantize.matrix import ByteMatrix, FloatMatrix

NEEDS: Need = "hessian"
EQUALIZES = True
PROPAGATES = True

# Rows do not depend on each other: a head of 100,000 rows is worked through in pieces of this many weights.
_PIECE_ELEMENTS = 1 << 24
# Channels whose errors are collected before the rest hears of them.
_BLOCK = 64
_BITS_WORTH_IT = 4
_ROUNDS, _SWEEPS = 2, 2


def quantize(weight: FloatMatrix, grid: Grid, statistics: InputStatistics | None = None) -> Quantized:
    """Bring float32 [N, K] onto `grid` with the least error of the outputs on the calibration text."""
    return _quantize(weight, grid, statistics, rounds=_ROUNDS)


def quickly(weight: FloatMatrix, grid: Grid, statistics: InputStatistics | None = None) -> Quantized:
    """The same without the descent: what comparing formats and scales needs."""
    return _quantize(weight, grid, statistics, rounds=0)


def _quantize(weight: FloatMatrix, grid: Grid, statistics: InputStatistics | None, *, rounds: int) -> Quantized:
    start = mse.quantize(weight, grid, statistics)
    if statistics is None or statistics.hessian is None or grid.bits > _BITS_WORTH_IT:
        return start
    factors = statistics.factors or Factors(statistics.hessian)
    values, scales = np.empty_like(start.values), np.empty_like(start.scales)
    step = max(1, _PIECE_ELEMENTS // weight.shape[1])
    for first in range(0, len(weight), step):
        rows = slice(first, first + step)
        target = to_device(weight[rows])
        rounding = _on_grid(start, rows)
        rounding.levels = round_channels(target, rounding, factors.order, factors.inverse)
        if rounds:
            rounding = descend(target, rounding, factors.damped, rounds=rounds, sweeps=_SWEEPS)
        values[rows], scales[rows] = _off_grid(rounding, start, rows)
    return Quantized(grid, values, scales, start.zero_points)


def round_channels(target: torch.Tensor, rounding: Rounding, order: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Levels [N, K] of `target` [N, K] for the scales and bounds of `rounding`.

    `factor` [K, K] is the upper Cholesky factor of the inverse Hessian, channels in `order`.
    """
    left = target.T[order].contiguous()
    scales, low, high = (
        rounding.spread(t).T[order].contiguous() for t in (rounding.scales, rounding.low, rounding.high)
    )
    levels = torch.empty_like(left)
    for start in range(0, len(left), _BLOCK):
        end = min(start + _BLOCK, len(left))
        errors = torch.empty_like(left[start:end])
        for channel in range(start, end):
            scale, row = scales[channel], factor[channel]
            level = (left[channel] / scale).round_().clamp_(low[channel], high[channel])
            levels[channel] = level
            error = torch.div(left[channel] - level * scale, row[channel], out=errors[channel - start])
            left[channel + 1 : end].addr_(row[channel + 1 : end], error, alpha=-1)
        left[end:].addmm_(factor[start:end, end:].T, errors, alpha=-1)
    result = torch.empty_like(levels)
    result[order] = levels
    return result.T.contiguous()


def _on_grid(start: Quantized, rows: slice) -> Rounding:
    """The scales and bounds of some rows of `start` as tensors; the levels are those of `start`."""
    grid, k = start.grid, start.values.shape[1]
    scales = to_device(start.scales[rows])
    if start.zero_points is None:
        zeros = torch.full_like(scales, float(grid.middle))
    else:
        zeros = to_device(start.zero_points[rows].astype(np.float32))
    rounding = Rounding(torch.empty(0), scales, grid.lowest - zeros, grid.highest - zeros, grid.block_size or k)
    rounding.levels = to_device(start.values[rows].astype(np.float32))
    rounding.levels -= rounding.spread(zeros)
    return rounding


def _off_grid(rounding: Rounding, start: Quantized, rows: slice) -> tuple[ByteMatrix, FloatMatrix]:
    """Values uint8 [N, K] and scales float32 [N, blocks]."""
    zeros = start.grid.lowest - rounding.spread(rounding.low)
    values = (rounding.levels + zeros).round().to(torch.uint8)
    return values.cpu().numpy(), rounding.scales.cpu().numpy()
