"""The plan: a recipe and the weights of a model → one format for each weight, with sizes. Knows no packing and no graph.

Where a format cannot serve a weight the next simpler one does, and the plan says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from aiasst.artifacts.model_folder import Weight
from aiasst.artifacts.recipe import Recipe, WeightFormat
from aiasst.quantize import formats
from aiasst.quantize.matrix import LeftAlone, Matrix

if TYPE_CHECKING:
    from aiasst.quantize.planning.mix import PlannedMix

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


@dataclass(frozen=True)
class Plan:
    """What a quantization will do."""

    recipe: Recipe
    weights: tuple[PlannedWeight, ...]
    other_parameters: int
    """Parameters that are no matrix of a product or lookup (norms, biases, position embeddings): they stay in float."""
    other_bytes: int
    """The bytes of those."""
    table_bytes: int
    """Bytes that are no parameters: rotary tables and other constants."""
    left_alone: tuple[LeftAlone, ...] = ()
    """What could not be considered at all."""
    notes: tuple[str, ...] = ()
    """What else there is to know before the work begins, a sentence each."""
    mix: PlannedMix | None = None
    """What a budget came to; None where a recipe decided."""

    def format_of(self, name: str) -> WeightFormat:
        """The format planned for the weight `name`, which is one of `weights`."""
        return self._formats[name]

    @cached_property
    def _formats(self) -> dict[str, WeightFormat]:
        return {weight.matrix.name: weight.chosen for weight in self.weights}

    @property
    def bytes_before(self) -> int:
        """Size of the model as it is."""
        return sum(w.bytes_before for w in self.weights) + self.other_bytes + self.table_bytes

    @property
    def bytes_after(self) -> int:
        """Size of the model as it will be."""
        return sum(w.bytes_after for w in self.weights) + self.other_bytes + self.table_bytes

    @property
    def parameters(self) -> int:
        """Parameters of the model; tied ones count once."""
        return sum(w.matrix.elements for w in self.weights) + self.other_parameters

    @property
    def bits_per_weight(self) -> float:
        """Bits of all parameters, scales, zero points, padding, embeddings, head and what stays in float included."""
        parameter_bytes = sum(w.bytes_after for w in self.weights) + self.other_bytes
        return 8 * parameter_bytes / max(1, self.parameters)


def make_plan(
    recipe: Recipe,
    matrices: Sequence[Matrix],
    *,
    layers: int,
    opset: int,
    others: Mapping[str, Weight],
    table_bytes: int,
    left_alone: tuple[LeftAlone, ...] = (),
    notes: tuple[str, ...] = (),
) -> Plan:
    """Choose a format for each of `matrices` of a model of `layers` layers.

    `others` are the rows of the weight table beside the matrices; rotary tables among them are no parameters.
    """
    parameters = [row for row in others.values() if row.role != "rotary" and row.shared_with is None]
    rotary_bytes = sum(row.bytes for row in others.values() if row.role == "rotary")
    return Plan(
        recipe=recipe,
        weights=tuple(_plan_weight(recipe, matrix, layers, opset) for matrix in matrices),
        other_parameters=sum(_elements(row.shape) for row in parameters),
        other_bytes=sum(row.bytes for row in parameters),
        table_bytes=table_bytes + rotary_bytes,
        left_alone=left_alone,
        notes=notes,
    )


def _plan_weight(recipe: Recipe, matrix: Matrix, layers: int, opset: int) -> PlannedWeight:
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


def _elements(shape: Sequence[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
