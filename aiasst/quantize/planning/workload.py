"""Time a token takes on a measured machine, by the formats of its weights. Knows no graph and no loss.

A user waits for a token as long as a decode step of all sequences takes, and for a share of every prompt that is read meanwhile:

    step(sequences) + sequences * prefill(prompt) / answer

`profile` has measured products of one size; a product of another takes time in proportion to k * n, and between two measured
numbers of rows time is interpolated on logarithms. Attention reads the cache at the measured bandwidth, whatever the formats;
norms, the launch of nodes and sampling are left out, so that the figure is a lower bound that ranks plans rightly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aiasst.artifacts.device import Costs, DeviceConfig, MatmulPoint
from aiasst.artifacts.model_folder import Shape
from aiasst.artifacts.recipe import WeightFormat
from aiasst.errors import ArtifactError
from aiasst.quantize.matrix import Matrix
from aiasst.quantize.planning.budget import Workload
from aiasst.quantize.planning.units import Unit

Doubles = npt.NDArray[np.float64]

# Stored in half precision, computed as float32.
_COMPUTED_AS: Mapping[str, str] = {"fp16": "fp32"}
_HINT = "measure this machine first: aiasst profile -o device.json"


@dataclass(frozen=True)
class CostTable:
    """The measured products, ready to be asked."""

    curves: Mapping[str, tuple[Doubles, Doubles]]
    """Format → (rows, microseconds for each of k * n), both ascending in rows."""
    bytes_per_ms: float
    """Of memory that is read; 0: not measured."""

    @classmethod
    def of(cls, device: DeviceConfig) -> CostTable:
        """The costs of a device config. Raises ArtifactError: nothing was measured."""
        if not device.costs.matmul:
            raise ArtifactError("the device config holds no measured costs, which a time per token needs", _HINT)
        formats = {point.format for point in device.costs.matmul}
        curves = {name: _curve([p for p in device.costs.matmul if p.format == name]) for name in sorted(formats)}
        return cls(curves, _bandwidth(device.costs))

    def microseconds(self, spec: WeightFormat, rows: int, k: int, n: int) -> float:
        """Of one product [rows, k] x [k, n] with a weight in format `spec`; infinite where nothing like it was measured."""
        name = _COMPUTED_AS.get(spec.format, spec.format)
        if spec.block_size is None:
            return self._time(name, rows) * k * n
        # Scales are read and applied once a block: time is a constant and a share in proportion to 1 / block.
        measured = {int(key.rpartition("-b")[2]): key for key in self.curves if key.startswith(f"{name}-b")}
        known = sorted((1 / block, self._time(key, rows)) for block, key in measured.items())
        if not known:
            return math.inf
        (x0, t0), (x1, t1) = known[0], known[-1]
        slope = max(0.0, (t1 - t0) / (x1 - x0)) if x1 > x0 else 0.0
        if spec.block_size in measured:
            return self._time(measured[spec.block_size], rows) * k * n
        return max(t0 + slope * (1 / spec.block_size - x0), 0.5 * t0) * k * n

    def _time(self, key: str, rows: int) -> float:
        if key not in self.curves:
            return math.inf
        at, times = self.curves[key]
        if rows >= at[-1]:
            return float(times[-1] * rows / at[-1])
        return float(np.exp(np.interp(np.log(rows), np.log(at), np.log(times))))


def milliseconds(units: Sequence[Unit], columns: Sequence[str], costs: CostTable, workload: Workload) -> Doubles:
    """Time a token takes in each unit and format, [units, columns]; infinite where no cost is known, 0 where there is none."""
    table = np.zeros((len(units), len(columns)))
    for row, unit in enumerate(units):
        for candidate in unit.candidates:
            pairs = zip(unit.matrices, candidate.chosen, strict=True)
            table[row, columns.index(candidate.label)] = sum(_of_matrix(m, s, costs, workload) for m, s in pairs)
    return table


def attention_milliseconds(shape: Shape | None, costs: CostTable, workload: Workload) -> float:
    """Time a step takes to read the keys and values of all sequences, half way through their answers."""
    if shape is None or not costs.bytes_per_ms:
        return 0.0
    token = 2 * 4 * shape.layers * shape.kv_heads * shape.head_dim
    return workload.sequences * (workload.prompt + workload.answer / 2) * token / costs.bytes_per_ms


def _of_matrix(matrix: Matrix, spec: WeightFormat, costs: CostTable, workload: Workload) -> float:
    if not matrix.multiplies:
        return 0.0
    # Of a prompt the head looks at the last token only.
    prompt_rows = 1 if matrix.planned_role == "lm_head" else workload.prompt
    step = costs.microseconds(spec, workload.sequences, matrix.k, matrix.n)
    prefill = costs.microseconds(spec, prompt_rows, matrix.k, matrix.n) if workload.prompt else 0.0
    return (step + workload.sequences * prefill / workload.answer) / 1000


def _curve(points: Sequence[MatmulPoint]) -> tuple[Doubles, Doubles]:
    ordered = sorted(points, key=lambda point: point.rows)
    rows = np.array([point.rows for point in ordered], dtype=np.float64)
    return rows, np.array([point.microseconds / (point.k * point.n) for point in ordered])


def _bandwidth(costs: Costs) -> float:
    return max((point.gigabytes_per_second for point in costs.bandwidth), default=0.0) * 1e6
