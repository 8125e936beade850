"""The second form of a decoder: w8a8 products beside the first form's embedding and head. Plans and puts together; rounds nothing.

Both forms come from one float model, and nothing that either changes passes through the cache: scales are folded into norms and
taken back by the products behind them. So one cache serves both. What the second shares with the first, it has byte by byte: the
embedding and the head, with the norm whose scales the head undoes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from aiasst.artifacts.model_folder import Weight
from aiasst.artifacts.recipe import VOCABULARY_ROLES
from aiasst.errors import UsageError
from aiasst.quantize.calibrate.contents import Contents, FloatVector
from aiasst.quantize.calibrate.folding import find_norms
from aiasst.quantize.grid import Quantized
from aiasst.quantize.inventory import Found, Inventory
from aiasst.quantize.matrix import FloatMatrix, Matrix
from aiasst.quantize.plan import Plan
from aiasst.quantize.ranges import InputRange
from aiasst.quantize.rewrite import added_bias

if TYPE_CHECKING:
    from aiasst.quantize.calibrate.task import Task
    from aiasst.quantize.source import QuantizeSource

RECIPE = "w8a8"
"""The recipe that the second form's products follow."""


@dataclass(frozen=True)
class Twin:
    """A second form that was prepared."""

    source: QuantizeSource
    """The float model, opened once more: its graph is changed in place as well."""
    inventory: Inventory
    plan: Plan
    task: Task | None
    """Its own calibration; None where every weight is rounded by itself."""


def is_shared(matrix: Matrix) -> bool:
    """Whether the second form has a weight as the first has it: a lookup cannot be w8a8, and a head sees a row a sequence."""
    return matrix.looks_up or matrix.planned_role in VOCABULARY_ROLES


def plan_twin(first: Plan, second: Plan) -> Plan:
    """The plan of the second form: `second` (by its recipe, for the same weights) with the formats of `first` where it shares.

    Raises:
        UsageError: the first form has nothing that the second would have in another format.
    """
    weights = tuple(
        ours if is_shared(ours.matrix) else theirs for ours, theirs in zip(first.weights, second.weights, strict=True)
    )
    if all(mine.chosen == other.chosen for mine, other in zip(weights, first.weights, strict=True)):
        raise UsageError(
            f"--twin adds a {RECIPE} form to one of fewer bits, and the recipe {first.recipe.name} comes to the same",
            "leave --twin out, or choose --bits 4",
        )
    return replace(second, weights=weights)


def shared_names(found: Sequence[Found]) -> frozenset[str]:
    """Names of the weights that the second form shares."""
    return frozenset(each.matrix.name for each in found if is_shared(each.matrix))


def without_shared_products(inventory: Inventory) -> Inventory:
    """What a calibration of the second form rounds, and the embeddings that its activations begin with."""
    kept = tuple(each for each in inventory.found if each.matrix.looks_up or not is_shared(each.matrix))
    return replace(inventory, found=kept)


@dataclass(frozen=True)
class TwinContents:
    """The weights of the second form: its own, and those of the first where it shares."""

    own: Contents
    first: Contents
    inventory: Inventory

    @cached_property
    def vectors(self) -> Mapping[str, FloatVector]:
        """See `Contents`: a norm or bias that belongs to shared products is the first form's."""
        theirs = _vectors_of(self.inventory.found, shared_names(self.inventory.found))
        mine = {name: vector for name, vector in self.own.vectors.items() if name not in theirs}
        return mine | {name: vector for name, vector in self.first.vectors.items() if name in theirs}

    @property
    def ranges(self) -> Mapping[str, InputRange]:
        """See `Contents`."""
        return {**self.own.ranges, **self.first.ranges}

    def matrix(self, found: Found) -> Quantized | FloatMatrix | None:
        """See `Contents`."""
        return (self.first if is_shared(found.matrix) else self.own).matrix(found)


def twin_rows(
    rows: Mapping[str, Weight], shared: Collection[str], stored_by_first: Collection[str]
) -> dict[str, Weight]:
    """The weight table of the second form: `rows` without bytes where they lie in the first form's file.

    Args:
        rows: as if the form stood alone.
        shared: weights that it shares.
        stored_by_first: tensors (norms, tables) that came out the same, byte by byte.
    """
    borrowed = {
        name for name, row in rows.items() if row.shared_with is None and (name in shared or name in stored_by_first)
    }
    return {
        name: row.model_copy(update={"shared_with": name, "bytes": 0}) if name in borrowed else row
        for name, row in rows.items()
    }


def _vectors_of(found: Sequence[Found], products: Collection[str]) -> set[str]:
    """Names of the norms' vectors that `products` take scales from, and of the biases that are added to them."""
    names = {name for fold in find_norms(found).values() if set(fold.weights) <= set(products) for name in fold.vectors}
    for each in found:
        if each.matrix.name in products:
            biases = (added_bias(use.node, each.matrix.n).bias for use in each.uses if not use.lookup)
            names |= {bias.name for bias in biases if bias is not None and bias.name is not None}
    return names
