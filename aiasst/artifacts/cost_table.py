"""The measured products of a device config, asked for any size and any number of rows. Knows no graph, no loss and no model.

A product takes time in proportion to k * n, so what is kept is the time of one multiplication. Between two measured numbers
of rows, and between two measured sizes, it is interpolated on logarithms; beyond the largest number of rows time grows with
the rows, beyond the largest size with the size. Below the smallest size it falls as it did between the two smallest ones: launching
a product and waking its threads costs something whatever its size.

Weights that come from memory are measured with few rows; with more, what multiplying adds is known from weights in the cache.
Files of version 1 have the former only, up to many rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from aiasst.artifacts.device import Costs, MatmulPoint
from aiasst.artifacts.recipe import WeightFormat
from aiasst.errors import ArtifactError

Doubles = npt.NDArray[np.float64]

USUAL_SHAPE = (2048, 2048)
"""k and n of the products that are shown, and that decisions go by."""
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
    """Format → a curve for each measured size, rising; weights come from memory."""
    bytes_per_ms: float
    """Of memory that is read; 0: not measured."""
    resident: Mapping[str, tuple[Curve, ...]] = field(default_factory=dict)
    """The same with weights in the cache; empty where that was not measured."""

    @classmethod
    def of(cls, costs: Costs) -> CostTable:
        """The costs of a device config. Raises ArtifactError: nothing was measured."""
        if not costs.matmul:
            raise ArtifactError("the device config holds no measured costs, which a time per token needs", _HINT)
        reading = [point for point in costs.matmul if not point.cached]
        curves, resident = _by_format(reading), _by_format([point for point in costs.matmul if point.cached])
        # A chain that took too long to be streamed was still multiplied.
        curves = {**resident, **curves}
        return cls(curves, max((p.gigabytes_per_second for p in costs.bandwidth), default=0.0) * 1e6, resident)

    @property
    def knows_resident(self) -> bool:
        """Whether weights in the cache were measured."""
        return bool(self.resident)

    def microseconds(self, spec: WeightFormat, rows: int, k: int, n: int, *, cached: bool = False) -> float:
        """Of one product [rows, k] x [k, n] with a weight in format `spec`; infinite where nothing like it was measured.

        `cached`: the weight lies in the processor's cache; where that was not measured, as if it came from memory.
        """
        name: str = spec.format
        size = k * n
        if name not in self.curves and name in _COMPUTED_AS:
            name = _COMPUTED_AS[name]
        if spec.block_size is None:
            return self._time(name, rows, size, cached) * size
        # Scales are read and applied once a block: time is a constant and a share in proportion to 1 / block.
        measured = {int(key.rpartition("-b")[2]): key for key in self.curves if key.startswith(f"{name}-b")}
        if spec.block_size in measured:
            return self._time(measured[spec.block_size], rows, size, cached) * size
        known = sorted((1 / block, self._time(key, rows, size, cached)) for block, key in measured.items())
        if not known:
            return math.inf
        (x0, t0), (x1, t1) = known[0], known[-1]
        slope = max(0.0, (t1 - t0) / (x1 - x0)) if x1 > x0 else 0.0
        return max(t0 + slope * (1 / spec.block_size - x0), 0.5 * t0) * size

    def _time(self, key: str, rows: int, size: int, cached: bool) -> float:
        """Microseconds for each of k * n."""
        if key not in self.curves:
            return math.inf
        streamed, resident = self.curves[key], self.resident.get(key, ())
        if cached and resident:
            return _between_sizes(resident, rows, size)
        last = min(int(curve.rows[-1]) for curve in streamed)
        if rows <= last or not resident or max(curve.rows[-1] for curve in resident) <= last:
            return _between_sizes(streamed, rows, size)
        read = _between_sizes(streamed, last, size)
        return read + max(0.0, _between_sizes(resident, rows, size) - _between_sizes(resident, last, size))


def usual_products(costs: Costs) -> tuple[MatmulPoint, ...]:
    """One point for each format and number of rows, of the usual shape: weights from memory; with many rows, from the cache.

    Of a config that has none of that shape, all shapes.
    """
    usual = [point for point in costs.matmul if (point.k, point.n) == USUAL_SHAPE] or list(costs.matmul)
    found: dict[tuple[str, int], MatmulPoint] = {}
    for point in usual:
        key = point.format, point.rows
        if key not in found or (found[key].cached and not point.cached):
            found[key] = point
    order = {label: place for place, label in enumerate(dict.fromkeys(point.format for point in usual))}
    return tuple(sorted(found.values(), key=lambda point: (order[point.format], point.rows)))


def _between_sizes(curves: Sequence[Curve], rows: int, size: int) -> float:
    sizes, times = np.log([curve.size for curve in curves]), np.log([curve.time(rows) for curve in curves])
    wanted = math.log(size)
    if wanted < sizes[0] and len(sizes) > 1:
        # Of one multiplication: it never falls towards smaller sizes, and never rises faster than a product of constant time.
        slope = min(0.0, max(-1.0, (times[1] - times[0]) / (sizes[1] - sizes[0])))
        return float(np.exp(times[0] + slope * (wanted - sizes[0])))
    return float(np.exp(np.interp(wanted, sizes, times)))


def _by_format(points: Sequence[MatmulPoint]) -> dict[str, tuple[Curve, ...]]:
    formats = sorted({point.format for point in points})
    return {name: _curves([point for point in points if point.format == name]) for name in formats}


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
