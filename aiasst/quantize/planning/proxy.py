"""How far a product's output is off when its weight has a format: cheap, from a sample of rows. Knows no session and no loss.

    error = |Q(x) Q(W)^T - x W^T|^2 / |x W^T|^2     over probe tokens x and some rows of W

W is rounded by the recipe's algorithm under the statistics of other tokens, and x as the format's kernel does: to int8 a row and
block of the weight's blocks, or to uint8 a whole row (w8a8). Both count, which is what tells w8a8 from int8 in blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from aiasst.artifacts.recipe import WeightFormat
from aiasst.quantize import formats
from aiasst.quantize.algorithms import Algorithm, InputStatistics, mse
from aiasst.quantize.calibrate.contents import weight_rows
from aiasst.quantize.corrections.tied import tied_hessian
from aiasst.quantize.grid import Grid
from aiasst.quantize.inventory import Found
from aiasst.quantize.matrix import FloatMatrix

# Rows of a weight that speak for all of it, and tokens that speak for a text.
_ROWS, _TOKENS = 192, 1024
_STEPS = 127


@dataclass(frozen=True)
class Errors:
    """Relative squared errors of a product's output."""

    weight: float
    """With the weight alone rounded."""
    both: float
    """With its input rounded as well, as the kernel does."""


def product_errors(
    rows: FloatMatrix,
    spec: WeightFormat,
    algorithm: Algorithm,
    statistics: InputStatistics | None,
    inputs: FloatMatrix,
    *,
    tied: bool = False,
) -> Errors:
    """Errors of a product with the weight `rows` [N, K] in format `spec`, on `inputs` [tokens, K].

    Of a `tied` weight the error of its rows, as they are looked up, is added.
    """
    if tied and statistics is not None and statistics.hessian is not None:
        statistics = replace(statistics, hessian=tied_hessian(statistics.hessian))
    x = inputs[np.linspace(0, len(inputs) - 1, min(_TOKENS, len(inputs))).astype(int)]
    rounded = _rounded(rows, spec, algorithm, statistics)
    exact = x @ rows.T
    size = max(float(np.square(exact).sum()), 1e-30)
    weight = float(np.square(x @ (rounded - rows).T).sum()) / size
    lookup = float(np.square(rounded - rows).sum()) / max(float(np.square(rows).sum()), 1e-30) if tied else 0.0
    grid = formats.load(spec.format).grid(spec)
    if grid is None:
        return Errors(weight + lookup, weight + lookup)
    both = float(np.square(_round_inputs(x, grid) @ rounded.T - exact).sum()) / size
    return Errors(weight + lookup, both + lookup)


def lookup_error(rows: FloatMatrix, spec: WeightFormat) -> float:
    """Relative squared error of looked-up `rows` [N, K] in format `spec`."""
    difference = _rounded(rows, spec, mse, None) - rows
    return float(np.square(difference).sum()) / max(float(np.square(rows).sum()), 1e-30)


def sample(found: Found) -> FloatMatrix:
    """Some rows of a weight, float32 [rows, K], a copy."""
    rows = weight_rows(found)
    chosen = np.linspace(0, len(rows) - 1, min(_ROWS, len(rows))).astype(int)
    return np.array(rows[chosen], dtype=np.float32)


def _rounded(
    rows: FloatMatrix, spec: WeightFormat, algorithm: Algorithm, statistics: InputStatistics | None
) -> FloatMatrix:
    grid = formats.load(spec.format).grid(spec)
    if grid is None:
        return rows.astype(np.float16).astype(np.float32) if spec.format == "fp16" else rows
    if statistics is None or (statistics.hessian is None and algorithm.NEEDS == "hessian"):
        return mse.quantize(rows, grid, statistics).dequantize()
    return algorithm.quantize(rows, grid, statistics).dequantize()


def _round_inputs(x: FloatMatrix, grid: Grid) -> FloatMatrix:
    """Activations [tokens, K] rounded to 8 bits, a scale a row and block (the whole row where the grid is per channel)."""
    tokens, k = x.shape
    block = grid.block_size or k
    padded = np.zeros((tokens, -(-k // block) * block), dtype=np.float32)
    padded[:, :k] = x
    cut = padded.reshape(tokens, -1, block)
    scales = np.maximum(np.abs(cut).max(axis=2, keepdims=True), 1e-30) / _STEPS
    rounded: FloatMatrix = (np.rint(cut / scales) * scales).reshape(tokens, -1)[:, :k]
    return rounded
