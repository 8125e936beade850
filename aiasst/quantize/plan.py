"""The plan: a recipe and the weights of a model → one format for each weight, with sizes. Knows no packing and no graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from aiasst.artifacts.model_folder import Weight
from aiasst.artifacts.recipe import Recipe, WeightFormat
from aiasst.quantize.fitting import PlannedWeight, plan_weight
from aiasst.quantize.matrix import LeftAlone, Matrix

if TYPE_CHECKING:
    from aiasst.quantize.planning.mix import PlannedMix


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
        weights=tuple(plan_weight(recipe, matrix, layers=layers, opset=opset) for matrix in matrices),
        other_parameters=sum(_elements(row.shape) for row in parameters),
        other_bytes=sum(row.bytes for row in parameters),
        table_bytes=table_bytes + rotary_bytes,
        left_alone=left_alone,
        notes=notes,
    )


def _elements(shape: Sequence[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
