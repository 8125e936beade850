"""What planning under a budget takes: memory, disk and time, from shapes alone, before any of the work. Knows no graph.

Two walks through the layers: one that measures some units in two formats each, while every product is looked at in every format,
and one with the few plans that were best. In both, a layer's weights are in memory in every format that a variant has them in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from aiasst.artifacts.recipe import WeightFormat
from aiasst.quantize import algorithms, formats
from aiasst.quantize.algorithms import Need
from aiasst.quantize.calibrate import estimate
from aiasst.quantize.calibrate.layers import LayeredModel
from aiasst.quantize.calibrate.samples import Samples
from aiasst.quantize.calibrate.shapes import GroupShape, LayerShape, ModelShape, shape_of
from aiasst.quantize.grid import Grid
from aiasst.quantize.inventory import Inventory
from aiasst.quantize.matrix import Matrix
from aiasst.quantize.phases import A_NUMBER, FLOAT, Moment, Phase, peak
from aiasst.quantize.planning.budget import Budget
from aiasst.quantize.planning.losses import chosen_units, two_formats
from aiasst.quantize.planning.planner import probe_text
from aiasst.quantize.planning.streams import Text
from aiasst.quantize.planning.units import Unit, find_units
from aiasst.quantize.source import QuantizeSource

# As planner, streams and proxy have them.
PLANS, VARIANT_OPERATIONS, FEWEST_VARIANTS, MOST_VARIANTS = 6, 6e13, 12, 400
PIECE, ROWS, TOKENS = 64, 192, 1024
# How many formats a weight has in the best plans, which differ in a few units.
_FORMATS_OF_PLANS = 3
# Copies of the activations that formats are compared on; arrays of a piece of logits; share of the text that is predicted.
_INPUT_COPIES, _LOGIT_COPIES, _PREDICTED = 5, 7, 0.75


@dataclass(frozen=True)
class Planning:
    """All that the estimate depends on."""

    shape: ModelShape
    units: tuple[Unit, ...]
    text: Text
    need: Need
    chooses: bool
    """Whether there is a limit of size or time, within which several plans are compared."""


def planning_of(
    source: QuantizeSource,
    layered: LayeredModel,
    inventory: Inventory,
    samples: Samples,
    algorithm: str,
    budget: Budget,
    max_ram: int | None,
) -> Phase:
    """What `plan_under_budget` takes with the same arguments."""
    matrices = [found.matrix for found in inventory.found]
    layers = source.shape.layers if source.shape else inventory.layers
    return phase(
        Planning(
            shape_of(source, layered, inventory),
            find_units(matrices, layers=layers, opset=source.opset),
            probe_text(source, samples, max_ram),
            algorithms.load(algorithm).NEEDS,
            budget.needs_planning,
        )
    )


def phase(planning: Planning) -> Phase:
    """What planning takes when nothing has been found out about the model before."""
    walks = [_measuring(planning), _comparing(planning)]
    return Phase(
        "planning",
        max(walk.memory() for walk in walks),
        max(walk.disk() for walk in walks),
        runs=sum(walk.runs() for walk in walks),
        algebra=sum(walk.algebra() for walk in walks),
        remedy="say the formats yourself: --recipe",
    )


def _measuring(planning: Planning) -> _Walk:
    """The walk that looks at everything, and measures some units in two formats each."""
    elements = sum(matrix.elements for matrix in planning.shape.matrices)
    tokens = sum(batch.size for batch in planning.text.probes)
    most = min(max(int(VARIANT_OPERATIONS / max(1, elements * tokens)), FEWEST_VARIANTS), MOST_VARIANTS)
    variants = [
        {m.name: _grid(spec) for m, spec in zip(unit.matrices, candidate.chosen, strict=True) if spec.format != "fp32"}
        for unit in chosen_units(planning.units, most)
        for candidate in two_formats(unit)
    ]
    return _Walk(planning, variants, looks=True)


def _comparing(planning: Planning) -> _Walk:
    """The walk with the best plans: every weight is rounded, in several formats where there are several plans."""
    usual = {m.name: _grid(two_formats(unit)[-1].chosen[0]) for unit in planning.units for m in unit.matrices}
    plans = PLANS if planning.chooses else 1
    return _Walk(planning, [usual] * plans, looks=False, most_formats=min(plans, _FORMATS_OF_PLANS))


@dataclass(frozen=True)
class _Walk:
    """One way through the layers."""

    planning: Planning
    variants: list[dict[str, Grid | None]]
    """Each some weights and what they are rounded to."""
    looks: bool
    """Whether every product is looked at in every format it may have."""
    most_formats: int | None = None
    """How many formats each weight has among the variants; None: as many as there are variants with it."""

    # ------------------------------------------------------------------ memory and disk

    def memory(self) -> int:
        """Bytes resident at the peak."""
        return peak(self._moments())

    def _moments(self) -> Iterator[Moment]:
        """Everything that could be the peak."""
        shape, text, kept = self.planning.shape, self.planning.text, 0.0
        for layer in shape.layers:
            # A tied head is rounded with the embedding, and multiplied with at the end.
            multiplied = [m for group in layer.groups for m in group.weights if not m.looks_up]
            mapped = shape.mapped(layer, _size(text.seen) + _size(text.probes))
            held = mapped + kept + self._copies((*multiplied, *layer.lookups))
            yield Moment(held, self._advancing(layer))
            yield Moment(held + self._rounding(layer))
            for group in layer.groups:
                yield Moment(held + estimate.squares(self.planning.need, group.width, 1), self._gathering(layer, group))
            kept += self._copies(matrix for matrix in layer.lookups if matrix.multiplies)
        entering, logits = self._finishing()
        yield Moment(held + entering, logits)

    def disk(self) -> int:
        """Where the text, the probes and the variants stand, before a layer and behind it."""
        text = self.planning.text
        a_token = FLOAT * self.planning.shape.hidden
        return int(a_token * (2 * _size(text.seen) + (2 + len(self.variants) + 1) * _size(text.probes)))

    def _copies(self, matrices: Iterable[Matrix]) -> float:
        """Bytes of weights in all their formats, as float32."""
        return FLOAT * sum(matrix.elements * self._count(matrix) for matrix in matrices)

    def _count(self, matrix: Matrix) -> int:
        count = sum(matrix.name in variant for variant in self.variants)
        return count if self.most_formats is None else min(count, self.most_formats)

    def _gathering(self, layer: LayerShape, group: GroupShape) -> float:
        sequences, length = max(self.planning.text.seen, key=lambda batch: batch.size).shape
        return estimate.gathered_rows(self.planning.shape, layer, group.width, sequences, length, 1)

    def _rounding(self, layer: LayerShape) -> float:
        """A weight on its way to the grid, the choice of scales before, and the look at the group behind."""
        need, probes = self.planning.need, _size(self.planning.text.probes)
        peak = 0.0
        for group in layer.groups:
            held = estimate.squares(need, group.width, 1)
            one = [
                estimate.rounding_bytes(matrix, variant[matrix.name], need, compares=False)
                for matrix in group.weights
                for variant in self.variants
                if matrix.name in variant
            ]
            looking = 0.0
            if self.looks:
                inputs = FLOAT * group.width * (2 * probes + _INPUT_COPIES * min(probes, TOKENS))
                looking = inputs + estimate.factorizing_bytes(need, group.width)
            peak = max(peak, held + max(estimate.choosing_bytes(need, group), looking, *one))
        return peak

    def _advancing(self, layer: LayerShape) -> float:
        """The largest batch of text or probes through the layer, what entered and what leaves."""
        batches = (*self.planning.text.seen, *self.planning.text.probes)
        batch = max(batches, key=lambda batch: batch.size)
        passing = 2 * FLOAT * batch.size * self.planning.shape.hidden
        return self.planning.shape.activations(layer, batch.shape[0], batch.shape[1]) + passing

    def _finishing(self) -> tuple[float, float]:
        """All variants before the head, and pieces of their logits; the head as it is, and as it is rounded."""
        shape = self.planning.shape
        batch = max(self.planning.text.probes, key=lambda batch: batch.size)
        entering = 2 * FLOAT * len(self.variants) * batch.size * shape.hidden
        logits = _LOGIT_COPIES * FLOAT * PIECE * shape.vocabulary
        # What enters fits into the holes that were left by what came before.
        return FLOAT * sum(matrix.elements for matrix in shape.head) + entering, logits

    # ------------------------------------------------------------------ time

    def runs(self) -> float:
        """Operations of sessions."""
        shape, text = self.planning.shape, self.planning.text
        seen, probes = _size(text.seen), _size(text.probes)
        lengths = text.seen[0].shape[1], text.probes[0].shape[1]
        departed = 0
        count = 0.0
        ahead = (
            2 if any(matrix.tied for matrix in shape.matrices) and self.looks and self.planning.need == "hessian" else 1
        )
        for layer in shape.layers:
            departed += self._departing(layer)
            count += ahead * shape.running(layer, seen, lengths[0])
            count += (1 + departed) * shape.running(layer, probes, lengths[1])
            for number in range(len(layer.groups)):
                count += shape.part(layer, number, seen, lengths[0])
                count += shape.part(layer, number, probes, lengths[1]) if self.looks else 0
        head = sum(matrix.elements for matrix in shape.head)
        answers = _PREDICTED * probes * (2 * head + A_NUMBER * shape.vocabulary)
        return count + (1 + len(self.variants)) * answers

    def _departing(self, layer: LayerShape) -> int:
        """How many variants differ from the float model in `layer` first."""
        names = {matrix.name for matrix in layer.matrices}
        before = {
            matrix.name
            for other in self.planning.shape.layers[: self.planning.shape.layers.index(layer)]
            for matrix in other.matrices
        }
        return sum(bool(names & variant.keys()) and not before & variant.keys() for variant in self.variants)

    def algebra(self) -> float:
        """Operations of statistics, of rounding, and of the look at every format."""
        need, seen = self.planning.need, _size(self.planning.text.seen)
        count = 0.0
        for layer in self.planning.shape.layers:
            for group in layer.groups:
                count += estimate.group_operations(need, group, seen, 1)
                count += sum(self._rounding_operations(matrix) for matrix in group.weights)
            count += A_NUMBER * sum(self._count(matrix) * matrix.elements for matrix in layer.lookups)
        return count

    def _rounding_operations(self, matrix: Matrix) -> float:
        need = self.planning.need
        grids = [variant[matrix.name] for variant in self.variants if matrix.name in variant][: self._count(matrix)]
        count = sum(estimate.quick_rounding_operations(matrix, grid, need) for grid in grids)
        return count + (self._looking(matrix) if self.looks else 0)

    def _looking(self, matrix: Matrix) -> float:
        """Operations of the look at one weight, by a sample of its rows, in every format that it may have."""
        need, k = self.planning.need, matrix.k
        rows, tokens = min(ROWS, matrix.n), min(TOKENS, _size(self.planning.text.probes))
        compared = 6 * tokens * rows * k + A_NUMBER * (tokens + rows) * k
        specs = self._candidates.get(matrix.name, frozenset())
        refined = sum(estimate.refined(need, _grid(spec)) for spec in specs)
        return len(specs) * compared + refined * estimate.quick_operations(rows, k)

    @cached_property
    def _candidates(self) -> Mapping[str, frozenset[WeightFormat]]:
        found: dict[str, set[WeightFormat]] = {}
        for unit in self.planning.units:
            for candidate in unit.candidates:
                for matrix, spec in zip(unit.matrices, candidate.chosen, strict=True):
                    found.setdefault(matrix.name, set()).add(spec)
        return {name: frozenset(specs) for name, specs in found.items()}


def _grid(spec: WeightFormat) -> Grid | None:
    return formats.load(spec.format).grid(spec)


def _size(batches: Iterable[npt.NDArray[np.int64]]) -> int:
    """Tokens of some batches."""
    return sum(batch.size for batch in batches)
