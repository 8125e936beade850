"""The measured products of a device config, asked for any size and any number of rows. Knows no graph, no loss and no model.

A product takes time in proportion to k * n, so what is kept is the time of one multiplication. Between two measured numbers
of rows, and between two measured sizes, it is interpolated on logarithms; beyond the largest number of rows time grows with
the rows, beyond the smallest or largest size it stays in proportion.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aiasst.artifacts.device import Costs, MatmulPoint
from aiasst.artifacts.recipe import WeightFormat
from aiasst.errors import ArtifactError

Doubles = npt.NDArray[np.float64]

# Stored in half precision, computed as float32.
_COMPUTED_AS: Mapping[str, str] = {"fp16": "fp32"}
_HINT = "measure this machine first: aiasst profile -o device.json"


@dataclass(frozen=True)
class Curve:
    """One format at one size: (rows, microseconds for each of k * n), both ascending in rows."""

    size: int
    """k * n that was measured."""
    rows: Doubles
    times: Doubles

    def time(self, rows: int) -> float:
        """Microseconds for each of k * n."""
        if rows >= self.rows[-1]:
            return float(self.times[-1] * rows / self.rows[-1])
        return float(np.exp(np.interp(np.log(rows), np.log(self.rows), np.log(self.times))))


@dataclass(frozen=True)
class CostTable:
    """The measured products, ready to be asked."""

    curves: Mapping[str, tuple[Curve, ...]]
    """Format → a curve for each measured size, rising."""
    bytes_per_ms: float
    """Of memory that is read; 0: not measured."""

    @classmethod
    def of(cls, costs: Costs) -> CostTable:
        """The costs of a device config. Raises ArtifactError: nothing was measured."""
        if not costs.matmul:
            raise ArtifactError("the device config holds no measured costs, which a time per token needs", _HINT)
        formats = sorted({point.format for point in costs.matmul})
        curves = {name: _curves([p for p in costs.matmul if p.format == name]) for name in formats}
        return cls(curves, max((point.gigabytes_per_second for point in costs.bandwidth), default=0.0) * 1e6)

    def microseconds(self, spec: WeightFormat, rows: int, k: int, n: int) -> float:
        """Of one product [rows, k] x [k, n] with a weight in format `spec`; infinite where nothing like it was measured."""
        name, size = _COMPUTED_AS.get(spec.format, spec.format), k * n
        if spec.block_size is None:
            return self._time(name, rows, size) * size
        # Scales are read and applied once a block: time is a constant and a share in proportion to 1 / block.
        measured = {int(key.rpartition("-b")[2]): key for key in self.curves if key.startswith(f"{name}-b")}
        if spec.block_size in measured:
            return self._time(measured[spec.block_size], rows, size) * size
        known = sorted((1 / block, self._time(key, rows, size)) for block, key in measured.items())
        if not known:
            return math.inf
        (x0, t0), (x1, t1) = known[0], known[-1]
        slope = max(0.0, (t1 - t0) / (x1 - x0)) if x1 > x0 else 0.0
        return max(t0 + slope * (1 / spec.block_size - x0), 0.5 * t0) * size

    def _time(self, key: str, rows: int, size: int) -> float:
        if key not in self.curves:
            return math.inf
        curves = self.curves[key]
        sizes, times = [curve.size for curve in curves], [curve.time(rows) for curve in curves]
        return float(np.exp(np.interp(math.log(size), np.log(sizes), np.log(times))))


def _curves(points: Sequence[MatmulPoint]) -> tuple[Curve, ...]:
    sizes = sorted({point.k * point.n for point in points})
    return tuple(_curve(size, [p for p in points if p.k * p.n == size]) for size in sizes)


def _curve(size: int, points: Sequence[MatmulPoint]) -> Curve:
    best: dict[int, float] = {}
    for point in points:
        # Shapes of one size ([k, n] and [n, k]) may both have been measured: the slower one counts.
        best[point.rows] = max(best.get(point.rows, 0.0), point.microseconds / size)
    rows = sorted(best)
    return Curve(size, np.array(rows, dtype=np.float64), np.array([best[r] for r in rows]))
