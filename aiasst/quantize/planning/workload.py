"""Time a token takes on a measured machine, by the formats of its weights. Knows no graph and no loss.

A user waits for a token as long as a decode step of all sequences takes, and for a share of every prompt that is read meanwhile:

    step(sequences) + sequences * prefill(prompt) / answer

The time of a product is the cost table's (artifacts.cost_table). What formats do not change is told with the workload by those who
know it (attention, norms, the engine: profile.predict); else it is what reading the cache takes at the measured bandwidth, and
the figure is a lower bound that ranks plans rightly.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from aiasst.artifacts.cost_table import CostTable
from aiasst.artifacts.model_folder import Shape
from aiasst.artifacts.recipe import WeightFormat
from aiasst.quantize.matrix import Matrix
from aiasst.quantize.planning.budget import Workload
from aiasst.quantize.planning.units import Unit

Doubles = npt.NDArray[np.float64]


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
    step = costs.microseconds(spec, workload.sequences, matrix.k, matrix.n, cached=workload.cached)
    prefill = 0.0
    if workload.prompt:
        prefill = costs.microseconds(spec, prompt_rows, matrix.k, matrix.n, cached=workload.cached)
    return (step + workload.sequences * prefill / workload.answer) / 1000
