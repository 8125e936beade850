"""The range of a product's inputs, fixed when the model is quantized: how it is chosen, and what it means in uint8.

With a fixed range an input costs one pass to round, and the product takes its bias along; and what becomes of a text still cannot
depend on its neighbours. What lies outside is clipped, so the range is the one of least error: some clipping buys a finer step.
Knows no graph and no file.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

LEVELS = 255
"""Steps of uint8."""
# Numbers that are kept of an activation to choose by: 16 MB.
_KEPT = 1 << 22
# How far the ends are drawn in, as shares of what was seen.
_SHARES = tuple(np.linspace(1.0, 0.2, 17).tolist())
_ROUNDS = 2


@dataclass(frozen=True)
class InputRange:
    """What an input is clipped to; holds zero, so that zeros stay zeros."""

    low: float
    high: float

    @property
    def scale(self) -> float:
        """One step."""
        return max(self.high - self.low, 1e-30) / LEVELS

    @property
    def zero_point(self) -> int:
        """What stands for zero, 0 … 255."""
        return min(max(round(-self.low / self.scale), 0), LEVELS)

    def rounded(self, x: Floats) -> Floats:
        """What `x` comes to."""
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

    def find(self, weight_energy: Floats, scales: Floats | None = None) -> InputRange:
        """The range of least squared error of the products.

        Args:
            weight_energy: sum of w^2 over the products' outputs, a number a channel [K]: what an error there is worth.
            scales: that the inputs will be divided by, [K]; None: they stay.
        """
        divided = np.float32(1) if scales is None else scales
        low, high = float((self._low / divided).min()), float((self._high / divided).max())
        sample = self._sample / divided
        best = shares = (1.0, 1.0)
        least = np.inf
        # One end after the other: the two hardly depend on each other.
        for _ in range(_ROUNDS):
            for at in (0, 1):
                for share in _SHARES:
                    tried = (share, shares[1]) if at == 0 else (shares[0], share)
                    found = InputRange(low * tried[0], high * tried[1])
                    error = _error(found, sample, weight_energy)
                    if error < least:
                        best, least = tried, error
                shares = best
        return InputRange(low * best[0], high * best[1])


def _error(tried: InputRange, sample: Floats, weight_energy: Floats) -> float:
    return float(np.square(tried.rounded(sample) - sample).mean(axis=0) @ weight_energy)
