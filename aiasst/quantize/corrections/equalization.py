"""Scales between a norm and the products behind it: gamma / s and columns * s leave the model as it is and change how it rounds.

A channel with large activations and small weights (or the other way round) spoils its block: the scale of the block follows the
large weights, and what is left of the small ones is multiplied by large activations. The candidates are

    s = rms(x)^a / rms(W)^(1-a)      a = 0: equal columns of weights;  a = 1/2: weights and activations meet half way

each of which undoes any scaling of channels that a checkpoint came with, and no scaling at all. The one of least output error on
a sample of rows is taken: after GPTQ where the Hessian is known, after weighted rounding to nearest where it is not, and with the
error of the activations' own rounding where they are rounded a row at a time (w8a8).

Sources: SmoothQuant (Xiao et al. 2022, arXiv:2211.10438) for the formula, AWQ (Lin et al. 2023, arXiv:2306.00978) for the search.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from aiasst.quantize.algorithms import InputStatistics, gptq, mse
from aiasst.quantize.grid import Grid
from aiasst.quantize.hessian import output_error
from aiasst.quantize.matrix import FloatMatrix

FloatVector = npt.NDArray[np.float32]

_SHARES = (0.0, 0.25, 0.5)
# Rows of a weight that speak for all of it.
_SAMPLE = 256
# Scales beyond this ratio to their mean come from channels that carry nothing.
_WIDEST = 1e4
# The peak of a row of K activations is about this many times their root mean square.
_PEAK = 4.0


def channel_scales(
    energy: FloatVector,
    weights: Sequence[FloatMatrix],
    grids: Sequence[Grid | None],
    hessian: FloatMatrix | None = None,
) -> FloatVector:
    """The scales, float32 [K] around 1, for products that read one norm's output.

    Args:
        energy: mean square of each channel of that output, [K].
        weights: the products' weights, each [N, K].
        grids: what each of them will be rounded to; None: it stays in floating point.
        hessian: E[x xT], [K, K], where the rounding will use it.
    """
    rounded = [(_sample(w), grid) for w, grid in zip(weights, grids, strict=True) if grid is not None]
    ones = np.ones(len(energy), dtype=np.float32)
    if not rounded or not energy.any():
        return ones
    columns = np.sqrt(np.mean([np.mean(np.square(w), axis=0) for w, _ in rounded], axis=0))
    best, least = ones, _error(ones, energy, rounded, hessian)
    for share in _SHARES:
        scales = _candidate(share, np.sqrt(energy), columns)
        error = _error(scales, energy, rounded, hessian)
        if error < least:
            best, least = scales, error
    return best


def _sample(weight: FloatMatrix) -> FloatMatrix:
    chosen = np.linspace(0, len(weight) - 1, min(_SAMPLE, len(weight))).astype(int)
    return np.ascontiguousarray(weight[chosen], dtype=np.float32)


def _candidate(share: float, activations: FloatVector, columns: FloatVector) -> FloatVector:
    """rms(x)^share / rms(W)^(1-share), with a geometric mean of 1."""
    logarithm = share * np.log(_floored(activations)) - (1 - share) * np.log(_floored(columns))
    logarithm -= logarithm.mean()
    scales: FloatVector = np.exp(logarithm).clip(1 / _WIDEST, _WIDEST).astype(np.float32)
    return scales


def _floored(values: FloatVector) -> npt.NDArray[np.float64]:
    """No smaller than a ten-thousandth of the largest."""
    largest = float(values.max())
    floored: npt.NDArray[np.float64] = np.maximum(values.astype(np.float64), largest / _WIDEST if largest else 1.0)
    return floored


def _error(
    scales: FloatVector, energy: FloatVector, weights: Sequence[tuple[FloatMatrix, Grid]], hessian: FloatMatrix | None
) -> float:
    """Squared output error a token, of all sampled rows."""
    scaled_energy: FloatVector = (energy / np.square(scales)).astype(np.float32)
    scaled_hessian = None if hessian is None else hessian / np.outer(scales, scales)
    statistics = InputStatistics(rows=1, energy=scaled_energy, hessian=scaled_hessian)
    total = 0.0
    for weight, grid in weights:
        scaled = weight * scales
        quantized = (mse.quantize if hessian is None else gptq.quickly)(scaled, grid, statistics)
        difference = quantized.dequantize() - scaled
        if scaled_hessian is None:
            total += float((np.square(difference) @ scaled_energy).sum())
        else:
            total += output_error(difference, scaled_hessian)
        if grid.block_size is None:
            total += activation_error(scaled, scaled_energy)
    return total


def activation_error(weight: FloatMatrix, energy: FloatVector) -> float:
    """Squared output error a token when a row of activations is rounded to 255 steps between its extremes.

    The step follows from the largest channel; its rounding noise, a twelfth of the step's square, falls on every channel alike.
    """
    step = _PEAK * float(np.sqrt(energy.max())) / 127
    return step * step / 12 * float(np.square(weight).sum())
