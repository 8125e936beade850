"""The products that read one activation: statistics → scales, rounded weights, corrected biases. Knows no session and no file.

In this order, each where the algorithm asks for it and the graph allows it:

    scales    of the input channels, which fold into the norm before (corrections.equalization)
    target    what the weights should be, seeing that their inputs differ from the float model's (corrections.target)
    rounding  by the algorithm, on the grid of each weight's format
    bias      shifted by the mean error that is left (corrections.bias)

Large matrices go through in pieces of rows, since rounding never couples two rows; what is factorized serves all pieces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aiasst.artifacts.recipe import RANGED_FORMATS, WeightFormat
from aiasst.quantize import formats
from aiasst.quantize.algorithms import Algorithm, InputStatistics
from aiasst.quantize.calibrate import folding
from aiasst.quantize.calibrate.contents import weight_rows
from aiasst.quantize.calibrate.estimate import PIECE_ELEMENTS
from aiasst.quantize.corrections.bias import bias_shift
from aiasst.quantize.corrections.equalization import channel_scales
from aiasst.quantize.corrections.target import Correction
from aiasst.quantize.grid import Grid, Quantized
from aiasst.quantize.hessian import Factors
from aiasst.quantize.inventory import Found
from aiasst.quantize.matrix import FloatMatrix, Matrix, copy_matrix
from aiasst.quantize.ranges import Columns, InputRange, RangeFinder

FloatVector = npt.NDArray[np.float32]

# Rows of a piece of a weight that speak for its rounding.
_SAMPLE = 256


@dataclass(frozen=True)
class Member:
    """A weight of the group."""

    found: Found
    spec: WeightFormat

    @property
    def grid(self) -> Grid | None:
        """What it is rounded to."""
        return formats.load(self.spec.format).grid(self.spec)


@dataclass
class GroupStatistics:
    """What was seen of the activation x [rows, K] in the quantized chain, and of x' of the same tokens in the float chain.

    Matrices [K, K] are what a calibration's peak of memory consists of: `cross` goes as soon as the last target is known.
    """

    rows: int
    energy: FloatVector
    """Mean of x^2, [K]."""
    hessian: FloatMatrix | None = None
    """Mean of x xT, [K, K]."""
    cross: FloatMatrix | None = None
    """Mean of x' xT, [K, K]."""
    mean_float: FloatVector | None = None
    """Mean of x', [K]."""
    mean_quantized: FloatVector | None = None
    """Mean of x, [K]."""

    def divide(self, scales: FloatVector) -> None:
        """Become the statistics of x / scales and x' / scales."""
        for matrix in (self.hessian, self.cross):
            if matrix is not None:
                matrix /= scales
                matrix /= scales[:, None]
        self.energy = self.energy / scales**2
        self.mean_float = None if self.mean_float is None else self.mean_float / scales
        self.mean_quantized = None if self.mean_quantized is None else self.mean_quantized / scales


def find_scales(members: Sequence[Member], statistics: GroupStatistics) -> FloatVector:
    """The scales [K] of the inputs of `members` that make rounding them easiest."""
    weights = [weight_rows(member.found) for member in members]
    grids = [member.grid for member in members]
    return channel_scales(statistics.energy, weights, grids, statistics.hessian)


def find_range(
    members: Sequence[Member], finder: RangeFinder, scales: FloatVector | None, *, smooth: bool
) -> InputRange:
    """One range for the inputs of all `members` that want one.

    The inputs are divided by `scales` already where there are any; else, with `smooth`, the range may bring divisors.
    """
    columns = _columns([member for member in members if member.spec.format in RANGED_FORMATS], scales)
    return finder.find_smoothed(columns) if smooth and scales is None else finder.find(columns, scales)


def _columns(members: Sequence[Member], scales: FloatVector | None) -> Columns:
    width = members[0].found.matrix.k
    energy, peak = np.zeros(width, np.float32), np.zeros(width, np.float32)
    sample: list[FloatMatrix] = []
    for member in members:
        for rows in pieces_of(member.found.matrix):
            piece = _folded(weight_rows(member.found)[rows], scales)
            energy += np.square(piece).sum(axis=0)
            np.maximum(peak, np.abs(piece).max(axis=0), out=peak)
            sample.append(piece[:: max(1, len(piece) // _SAMPLE)])
    return Columns(energy, peak, np.concatenate(sample), sum(member.found.matrix.n for member in members))


def round_member(
    member: Member,
    statistics: GroupStatistics | None,
    scales: FloatVector | None,
    algorithm: Algorithm,
    *,
    last: bool = False,
) -> Quantized | FloatMatrix:
    """The weight with folded `scales`, on its grid, or float32 [N, K] where that has none.

    `statistics` are those of the inputs divided by `scales`; None where nothing was seen of them. After the `last` member of
    a group they have no `cross` any more.
    """
    grid = member.grid
    if grid is None:
        return _folded(weight_rows(member.found), scales)
    known = _known(statistics)
    correction = _correction(statistics) if algorithm.PROPAGATES else None
    pieces: list[Quantized] = []
    for rows in pieces_of(member.found.matrix):
        # Mapped anew for each piece, so that the pages of the one before are let go.
        target = _folded(weight_rows(member.found)[rows], scales)
        if correction is not None:
            target = correction.target(target)
        if rows.stop == member.found.matrix.n:
            correction = None
            if last and statistics is not None:
                statistics.cross = None
        pieces.append(algorithm.quantize(target, grid, known))
    return _joined(pieces)


def stored_weight(
    matrix: Matrix, content: Quantized | FloatMatrix, scales: FloatVector | None, spec: WeightFormat
) -> FloatMatrix:
    """What the rounded weight comes to with scales unfolded, float32 and laid out as in the source: it can take its place."""
    stored = np.empty(matrix.stored_shape, dtype=np.float32)
    for rows in pieces_of(matrix):
        piece = weights_of(content, rows, spec)
        if scales is not None:
            piece = folding.divide_columns(piece, scales)
        if matrix.rows_first:
            stored[rows] = piece
        else:
            copy_matrix(piece.T, stored[:, rows])
    return stored


def weights_of(content: Quantized | FloatMatrix, rows: slice, spec: WeightFormat) -> FloatMatrix:
    """Some rows of what the operators will compute with, float32 [rows, K]."""
    if not isinstance(content, Quantized):
        piece = content[rows]
        return piece.astype(np.float16).astype(np.float32) if spec.format == "fp16" else piece
    zeros = None if content.zero_points is None else content.zero_points[rows]
    return Quantized(content.grid, content.values[rows], content.scales[rows], zeros).dequantize()


def corrected_bias(
    bias: FloatVector,
    matrix: Matrix,
    weight: FloatMatrix,
    stored: FloatMatrix,
    mean_float: FloatVector,
    mean_quantized: FloatVector,
) -> FloatVector:
    """The bias [N] that makes up for the mean error of the product.

    `weight` is the original [N, K] and `stored` what takes its place; the means [K] are of the inputs without scales.
    """
    shifted = bias.copy()
    for rows in pieces_of(matrix):
        rounded = matrix.as_rows(stored)[rows]
        shifted[rows] += bias_shift(weight[rows], rounded, mean_float, mean_quantized)
    return shifted


def pieces_of(matrix: Matrix) -> Iterator[slice]:
    """Consecutive rows that are worked on at once."""
    step = max(1, PIECE_ELEMENTS // matrix.k)
    return (slice(start, min(start + step, matrix.n)) for start in range(0, matrix.n, step))


def _folded(rows: FloatMatrix, scales: FloatVector | None) -> FloatMatrix:
    return rows if scales is None else folding.multiply_columns(rows, scales)


def _known(statistics: GroupStatistics | None) -> InputStatistics | None:
    if statistics is None:
        return None
    factors = None if statistics.hessian is None else Factors(statistics.hessian)
    return InputStatistics(statistics.rows, statistics.energy, statistics.hessian, factors)


def _correction(statistics: GroupStatistics | None) -> Correction | None:
    if statistics is None or statistics.hessian is None or statistics.cross is None:
        return None
    return Correction(statistics.hessian, statistics.cross)


def _joined(pieces: Sequence[Quantized]) -> Quantized:
    if len(pieces) == 1:
        return pieces[0]
    zeros = [piece.zero_points for piece in pieces if piece.zero_points is not None]
    return Quantized(
        pieces[0].grid,
        np.concatenate([piece.values for piece in pieces]),
        np.concatenate([piece.scales for piece in pieces]),
        np.concatenate(zeros) if zeros else None,
    )
