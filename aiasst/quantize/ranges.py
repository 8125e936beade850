"""The range of a product's inputs, fixed when the model is quantized: how it is chosen, and what it means in uint8.

With a fixed range an input costs one pass to round, and the product takes its bias along; and what becomes of a text still cannot
depend on its neighbours. What lies outside is clipped, so the range is the one of least error: some clipping buys a finer step.
One range serves all channels, so a channel of outliers spoils it for the others; it can be divided away, into the weights
(SmoothQuant, Xiao et al. 2022, arXiv:2211.10438). Knows no graph and no file.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

LEVELS = 255
"""Steps of uint8."""
# Numbers that are kept of an activation to choose by.
_KEPT = 1 << 19
# How far the ends are drawn in, as shares of what was seen.
_SHARES = tuple(np.linspace(1.0, 0.2, 17).tolist())
# SmoothQuant's exponents, and what is left of the error where dividing is worth a pass over the input.
_SMOOTHING = (0.25, 0.5, 0.75)
_WORTH_A_PASS = 0.8
FACTORS = ".input_factors"
"""Suffix of the tensor that an input is multiplied with before it is rounded: one by the divisors."""


@dataclass(frozen=True)
class InputRange:
    """What an input is clipped to; holds zero, so that zeros stay zeros."""

    low: float
    high: float
    divisors: Floats | None = field(default=None, compare=False)
    """What the channels are divided by before, float32 [K]; None: they stay as they are."""
    by_row: bool = False
    """The range follows from each row as it comes: `low` and `high` mean nothing, and the divisors are all there is to know."""

    @property
    def scale(self) -> float:
        """One step."""
        return max(self.high - self.low, 1e-30) / LEVELS

    @property
    def zero_point(self) -> int:
        """What stands for zero, 0 … 255."""
        return min(max(round(-self.low / self.scale), 0), LEVELS)

    @property
    def key(self) -> str:
        """Another one where anything is another."""
        numbers = np.array([self.low, self.high]).tobytes() + (
            b"" if self.divisors is None else self.divisors.tobytes()
        )
        return hashlib.sha256(numbers).hexdigest()

    def rounded(self, x: Floats) -> Floats:
        """What `x`, divided already, comes to."""
        low, high = -self.zero_point, LEVELS - self.zero_point
        result: Floats = np.rint(x * np.float32(1 / self.scale)).clip(low, high) * np.float32(self.scale)
        return result


class RangeFinder:
    """Sees the activations [rows, K] of a text batch by batch, and chooses their range."""

    def __init__(self, width: int) -> None:
        self._low = np.zeros(width, np.float32)
        self._high = np.zeros(width, np.float32)
        self._rows = max(1, _KEPT // width)
        self._sample = np.zeros((0, width), np.float32)
        self._stride = 1

    def add(self, x: Floats) -> None:
        """See some more rows: every one counts for the extremes, evenly spaced ones for the error."""
        np.minimum(self._low, x.min(axis=0), out=self._low)
        np.maximum(self._high, x.max(axis=0), out=self._high)
        self._sample = np.concatenate([self._sample, x[:: self._stride]])
        while len(self._sample) > self._rows:
            self._sample = self._sample[::2]
            self._stride *= 2

    def find(self, columns: Columns, scales: Floats | None = None) -> InputRange:
        """The range of least squared error of the products behind it.

        Args:
            columns: of the products' weights.
            scales: that the inputs are divided by before, at no cost, [K]; None: they are not.
        """
        return self._best(columns, np.ones_like(self._low) if scales is None else scales)[0]

    def find_smoothed(self, columns: Columns) -> InputRange:
        """The range and the divisors that together make the least error, of inputs and weights; no divisors where they gain little.

        The candidates are SmoothQuant's, max|x|^a / max|W|^(1-a) for some a: an outlying channel is made small, and what it
        is multiplied with large.
        """
        plain, least = self._best(columns, np.ones_like(self._low))
        least *= _WORTH_A_PASS
        best = plain
        for share in _SMOOTHING:
            divisors = self._divisors(columns, share)
            found, error = self._best(columns, divisors)
            if error < least:
                best, least = replace(found, divisors=divisors), error
        return best

    def _divisors(self, columns: Columns, share: float) -> Floats:
        """Around 1, by their geometric mean; a channel that carries next to nothing counts as a thousandth of the largest."""
        peaks = np.maximum(-self._low, self._high)
        logarithm = share * np.log(_floored(peaks)) - (1 - share) * np.log(_floored(columns.peak))
        divisors: Floats = np.exp(logarithm - logarithm.mean()).astype(np.float32)
        return divisors

    def _best(self, columns: Columns, divisors: Floats) -> tuple[InputRange, float]:
        """The best range of the inputs divided by `divisors`, and the error of the products there."""
        low, high = float((self._low / divisors).min()), float((self._high / divisors).max())
        sample = self._sample / divisors
        energy = columns.energy * np.square(divisors)
        best, least = (1.0, 1.0), np.inf
        # One end after the other: the two hardly depend on each other.
        for end in (0, 1, 0, 1):
            for share in _SHARES:
                tried = (share, best[1]) if end == 0 else (best[0], share)
                error = _error(InputRange(low * tried[0], high * tried[1]), sample, energy)
                if error < least:
                    best, least = tried, error
        weights = columns.rounding(divisors) * float(np.square(sample).mean(axis=0).sum())
        return InputRange(low * best[0], high * best[1]), least + weights


@dataclass(frozen=True)
class Columns:
    """What the choice of a range has to know of the weights [N, K] that the input is multiplied with."""

    energy: Floats
    """Sum of w^2 over the outputs, [K]: what an error in that channel is worth."""
    peak: Floats
    """Largest |w|, [K]."""
    sample: Floats
    """Some rows, [rows, K]."""
    rows: int
    """Outputs there are."""

    def rounding(self, scales: Floats) -> float:
        """Squared error of the weights' own rounding a unit of input energy: columns times `scales`, an int8 step a row."""
        steps = np.abs(self.sample * scales).max(axis=1) / 127
        return float(np.square(steps).mean()) / 12 * self.rows


def _floored(values: Floats) -> Floats:
    floored: Floats = np.maximum(values, max(float(values.max()) * 1e-3, 1e-30))
    return floored


def _error(tried: InputRange, sample: Floats, weight_energy: Floats) -> float:
    return float(np.square(tried.rounded(sample) - sample).mean(axis=0) @ weight_energy)
