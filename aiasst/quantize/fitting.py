"""One weight and the format that a recipe gives it, with its bytes. Knows no other weight, no packing and no graph.

Where a format cannot serve a weight the next simpler one does, with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass

from aiasst.artifacts.recipe import Recipe, WeightFormat
from aiasst.quantize import formats
from aiasst.quantize.matrix import Matrix

FP32 = WeightFormat(format="fp32")
# What serves where the wanted format cannot: an embedding (or a head tied to one), a graph of an old opset.
_FALLBACK = WeightFormat(format="int8", block_size=128)


@dataclass(frozen=True)
class PlannedWeight:
    """One weight and its format."""

    matrix: Matrix
    wanted: WeightFormat
    chosen: WeightFormat
    reason: str
    """Why `chosen` is not `wanted`; empty when it is."""
    bytes_before: int
    bytes_after: int


def plan_weight(recipe: Recipe, matrix: Matrix, *, layers: int, opset: int) -> PlannedWeight:
    """What `recipe` makes of `matrix` in a model of `layers` layers, as far as the operators of `opset` can."""
    wanted = recipe.format_of(matrix.planned_role, matrix.layer, layers, matrix.planned_rows)
    chosen, reason = _fitting(wanted, matrix, opset)
    size = formats.load(chosen.format).nbytes(chosen, matrix)
    return PlannedWeight(matrix, wanted, chosen, reason, matrix.elements * 4, size)


def _fitting(wanted: WeightFormat, matrix: Matrix, opset: int) -> tuple[WeightFormat, str]:
    """`wanted` where it can serve and pays, else what can and the reason."""
    reason = formats.load(wanted.format).unfit(wanted, matrix, opset)
    chosen, padding = _without_much_padding(_FALLBACK if reason else wanted, matrix)
    reason = reason or padding
    if chosen.format != "fp32" and formats.load(chosen.format).nbytes(chosen, matrix) >= matrix.elements * 4:
        return FP32, f"{chosen.label} would not be smaller: [{matrix.k}, {matrix.n}] fills less than its blocks"
    return chosen, reason


def _without_much_padding(spec: WeightFormat, matrix: Matrix) -> tuple[WeightFormat, str]:
    """`spec` with blocks small enough that K is not padded by more than a quarter, and the reason when they changed."""
    fitting = spec.fitting(matrix.k)
    if fitting == spec:
        return spec, ""
    return fitting, f"blocks of {spec.block_size} would pad {matrix.k} inputs to {spec.padded(matrix.k)}"
