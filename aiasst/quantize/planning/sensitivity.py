"""How much a model loses by each format of each unit, in nats of KL divergence a token. Knows no budget and chooses nothing.

    proxy         the relative error of the outputs, tr(D H DT) / tr(W H WT), of the unit rounded to the format by the recipe's
                  algorithm, on a sample of rows and with the Hessian of the calibration text
    measurement   the unit alone is rounded to a fine and to a coarse format, and the divergence of the whole model is measured
    table         through the two points (error, divergence) of a unit goes a power law; below the fine one it is a straight line,
                  since a small error's divergence grows with its square, and errors are squares already

All of it happens in one walk through the layers: the float chain goes ahead, and every rounded unit starts a chain of its own that
the later layers take along. So each layer is opened once for all of them, and memory holds one layer whatever the model. In a
large model the units of some layers are measured, and those between take what a unit of error costs from their neighbours.

Sources: the linearity of small errors in HIGGS (Malinovskii et al. 2024, arXiv:2411.17525); the fit to true divergences is ours.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aiasst.artifacts.document import Document
from aiasst.artifacts.recipe import WeightFormat
from aiasst.evaluate.perplexity import PIECE, kl_divergence, same_top1
from aiasst.progress import Progress, ProgressFn, silent
from aiasst.quantize import algorithms, formats
from aiasst.quantize.algorithms import Algorithm, InputStatistics, mse
from aiasst.quantize.calibrate import folding, rounding
from aiasst.quantize.calibrate.chains import Chain
from aiasst.quantize.calibrate.contents import weight_rows
from aiasst.quantize.calibrate.layers import Layer, LayeredModel, LayerSession
from aiasst.quantize.calibrate.rounding import GroupStatistics, Member
from aiasst.quantize.calibrate.statistics import Accumulator
from aiasst.quantize.corrections.equalization import activation_error
from aiasst.quantize.grid import Grid
from aiasst.quantize.hessian import output_error
from aiasst.quantize.inventory import Inventory
from aiasst.quantize.matrix import FloatMatrix
from aiasst.quantize.planning.units import Candidate, Unit

Array = npt.NDArray[Any]
Ids = npt.NDArray[np.int64]
FloatVector = npt.NDArray[np.float32]
Table = npt.NDArray[np.float64]

STAGE = "sensitivity"

_FINE = WeightFormat(format="int4", block_size=128)
_COARSE = WeightFormat(format="int2", block_size=128)
_SAMPLE_ROWS = 256
_PROBE_TOKENS = 2048
# Of all probes together: ten minutes on two cores. Beyond that, only some layers are measured.
_MOST_OPERATIONS = 2e14
_STEEPEST, _FLATTEST = 2.0, 0.5
_LEAST = 1e-12


class Measurement(Document):
    """The model with one unit rounded, against the model as it is."""

    unit: str
    format: str
    error: float
    """Relative squared error of the unit's outputs."""
    divergence: float
    """Mean KL divergence, nats; of an encoder the relative squared error of its vectors."""
    top1_agreement: float | None
    """None for an encoder."""


class Sensitivity(Document):
    """The table that planning works with."""

    columns: tuple[str, ...]
    """Labels of formats."""
    units: tuple[str, ...]
    """Titles."""
    errors: tuple[tuple[float, ...], ...]
    """Relative squared output error [units, columns]; NaN never: formats that a unit cannot have count as 0."""
    losses: tuple[tuple[float, ...], ...]
    """Predicted divergence [units, columns]."""
    measurements: tuple[Measurement, ...]

    @property
    def loss(self) -> Table:
        """float64 [units, columns]."""
        return np.array(self.losses, dtype=np.float64)


@dataclass
class _Stream:
    """The model with one unit rounded, as far as it has come."""

    unit: int
    spec: WeightFormat
    error: float
    chain: Chain
    replaced: dict[str, FloatMatrix]
    """Its rounded weights, as long as a layer to come reads them."""
    begun: bool = False


def measure_sensitivity(
    model: LayeredModel,
    inventory: Inventory,
    units: Sequence[Unit],
    columns: Sequence[str],
    ids: Ids,
    *,
    algorithm: str,
    work: Path,
    progress: ProgressFn = silent,
) -> Sensitivity:
    """Predict the loss of every unit in every format.

    Args:
        model: the float model in layers.
        inventory: its weights.
        units: what is planned together.
        columns: labels of the table's columns; every candidate of every unit has one.
        ids: calibration text, int64 [sequences, length]; divergences are measured on the first 2,048 tokens of it.
        algorithm: how weights will be rounded.
        work: an absent or empty folder for activations; removed in the end.

    Raises:
        ArtifactError: a layer does not run.
        OSError: the disk is full.
    """
    walk = _Walk(model, inventory, units, columns, ids, algorithms.load(algorithm), work, progress)
    try:
        return walk.run()
    finally:
        shutil.rmtree(work, ignore_errors=True)


class _Quick:
    """An algorithm in its quick form, aimed at the weights as they are."""

    def __init__(self, algorithm: Algorithm) -> None:
        self.NEEDS = algorithm.NEEDS
        self.EQUALIZES = algorithm.EQUALIZES
        self.PROPAGATES = False
        self.quantize = getattr(algorithm, "quickly", algorithm.quantize)


class _Walk:
    """One way through the layers."""

    def __init__(
        self,
        model: LayeredModel,
        inventory: Inventory,
        units: Sequence[Unit],
        columns: Sequence[str],
        ids: Ids,
        algorithm: Algorithm,
        work: Path,
        progress: ProgressFn,
    ) -> None:
        self._model, self._units, self._columns, self._work, self._progress = model, units, columns, work, progress
        self._algorithm: Algorithm = _Quick(algorithm)
        self._found = {found.matrix.name: found for found in inventory.found}
        self._unit_of = {matrix.name: index for index, unit in enumerate(units) for matrix in unit.matrices}
        self._folds = folding.find_norms(inventory.found) if algorithm.EQUALIZES else {}
        step = max(1, _PROBE_TOKENS // ids.shape[1])
        self._batches = [ids[start : start + step] for start in range(0, len(ids), step)]
        self._base = Chain(model, work, "base", self._batches)
        self._streams: list[_Stream] = []
        self._errors = np.zeros((len(units), len(columns)))
        self._sizes = np.zeros(len(units))
        self._measured = _measured_units(units, self._batches[0].size)

    def run(self) -> Sensitivity:
        """All layers, then the divergences."""
        layers = self._model.layers
        for number, layer in enumerate(layers):
            self._progress(Progress(STAGE, number, len(layers) + 1, layer.title))
            self._look_up(layer)
            self._look_at_groups(layer)
            self._advance(layer)
        self._progress(Progress(STAGE, len(layers), len(layers) + 1, f"divergence of {len(self._streams)} variants"))
        measurements = tuple(self._measurements())
        self._progress(Progress(STAGE, len(layers) + 1, len(layers) + 1))
        losses = predicted_losses(self._units, self._columns, self._relative(), measurements)
        return Sensitivity(
            columns=tuple(self._columns),
            units=tuple(unit.title for unit in self._units),
            errors=tuple(map(tuple, self._relative().tolist())),
            losses=tuple(map(tuple, losses.tolist())),
            measurements=measurements,
        )

    def _relative(self) -> Table:
        relative: Table = self._errors / np.maximum(self._sizes, _LEAST)[:, None]
        return relative

    # ------------------------------------------------------------------ errors

    def _look_up(self, layer: Layer) -> None:
        """Embeddings, of whose rows any may be asked for: the error of the weights themselves."""
        for name in layer.weights:
            unit = self._unit_of.get(name)
            if unit is None or not self._found[name].matrix.looks_up or self._sizes[unit]:
                continue
            rows = _sample(weight_rows(self._found[name]))
            self._sizes[unit] = float(np.square(rows).sum())
            for column, grid in self._grids(unit, name):
                difference = mse.quantize(rows, grid).dequantize() - rows
                self._errors[unit, column] = float(np.square(difference).sum())
            if self._measured[unit]:
                for spec in self._probes(unit):
                    self._begin(unit, spec, {name: self._rounded(name, spec, None, None, mse)})

    def _look_at_groups(self, layer: Layer) -> None:
        """Products, by the Hessian of what they read; one pass for the statistics of all groups."""
        seen = {
            group.value: Accumulator(self._found[group.weights[0]].matrix.k, hessian=self._needs_hessian)
            for group in layer.groups
        }
        if not seen:
            return
        for values in self._base.run(layer, list(seen)):
            for value, accumulator in seen.items():
                accumulator.add(values[value].reshape(-1, values[value].shape[-1]))
        rounded: dict[int, list[tuple[str, GroupStatistics, FloatVector | None]]] = {}
        for group in layer.groups:
            names = [name for name in group.weights if name in self._unit_of and not self._found[name].matrix.looks_up]
            statistics = self._statistics(seen.pop(group.value))
            scales = self._scales(group.value, names, statistics)
            statistics = statistics if scales is None else statistics.divided(scales)
            for name in names:
                self._add_errors(name, statistics, scales)
                rounded.setdefault(self._unit_of[name], []).append((name, statistics, scales))
        for unit, members in rounded.items():
            for spec in self._probes(unit) if self._measured[unit] else ():
                replaced = {
                    name: self._rounded(name, spec, statistics, scales, self._algorithm)
                    for name, statistics, scales in members
                }
                self._begin(unit, spec, replaced)

    @property
    def _needs_hessian(self) -> bool:
        return self._algorithm.NEEDS == "hessian"

    def _statistics(self, seen: Accumulator) -> GroupStatistics:
        return GroupStatistics(seen.rows, seen.energy(), seen.hessian() if self._needs_hessian else None)

    def _scales(self, value: str, names: Sequence[str], statistics: GroupStatistics) -> FloatVector | None:
        fold = self._folds.get(value)
        if fold is None or set(names) != set(fold.weights):
            return None
        return rounding.find_scales([Member(self._found[name], _FINE) for name in names], statistics)

    def _add_errors(self, name: str, statistics: GroupStatistics, scales: FloatVector | None) -> None:
        unit = self._unit_of[name]
        rows = _sample(weight_rows(self._found[name]))
        rows = rows if scales is None else rows * scales
        self._sizes[unit] += _energy_of(rows, statistics)
        known = InputStatistics(statistics.rows, statistics.energy, statistics.hessian)
        for column, grid in self._grids(unit, name):
            difference = self._algorithm.quantize(rows, grid, known).dequantize() - rows
            self._errors[unit, column] += _energy_of(difference, statistics)
            if grid.block_size is None:
                self._errors[unit, column] += activation_error(rows, statistics.energy)

    def _grids(self, unit: int, name: str) -> Iterator[tuple[int, Grid]]:
        """Column and grid of every candidate that rounds the weight `name`."""
        for candidate in self._units[unit].candidates:
            spec = _spec_of(self._units[unit], candidate, name)
            grid = formats.load(spec.format).grid(spec)
            if grid is not None:
                yield self._columns.index(candidate.label), grid

    # ------------------------------------------------------------------ streams

    def _probes(self, unit: int) -> list[WeightFormat]:
        """The fine and the coarse format that the unit is measured in."""
        labels = {candidate.label: candidate for candidate in self._units[unit].candidates}
        wanted = [spec for spec in (_FINE, _COARSE) if spec.label in labels]
        return wanted or [self._units[unit].candidates[0].spec]

    def _rounded(
        self,
        name: str,
        spec: WeightFormat,
        statistics: GroupStatistics | None,
        scales: FloatVector | None,
        algorithm: Algorithm,
    ) -> FloatMatrix:
        member = Member(self._found[name], spec)
        content = rounding.round_member(member, statistics, scales, algorithm)
        return rounding.stored_weight(member.found.matrix, content, scales, spec)

    def _begin(self, unit: int, spec: WeightFormat, replaced: dict[str, FloatMatrix]) -> None:
        error = self._relative()[unit, self._columns.index(spec.label)]
        chain = Chain(self._model, self._work, f"{unit}-{spec.label}", self._batches[:1])
        self._streams.append(_Stream(unit, spec, float(error), chain, replaced))

    def _advance(self, layer: Layer) -> None:
        """Take the float chain and every stream behind `layer`; weights that are needed no more are let go."""
        later = {name for after in self._model.layers[layer.index + 1 :] for name in after.weights}
        head = set(self._model.layers[-1].weights)
        plain = self._model.open(layer, layer.outputs)
        for stream in self._streams:
            own = {name: array for name, array in stream.replaced.items() if name in layer.weights}
            session = self._model.open(layer, layer.outputs, own) if own and not self._is_head(layer, own) else plain
            self._take(stream.chain, stream.begun, session, layer)
            stream.begun = True
            kept = later | (head if layer is self._model.layers[-1] else set())
            stream.replaced = {name: array for name, array in stream.replaced.items() if name in kept}
        self._take(self._base, True, plain, layer)

    def _is_head(self, layer: Layer, own: Mapping[str, Array]) -> bool:
        """Whether what is replaced is read behind `final` alone, which no stream passes here."""
        return layer is self._model.layers[-1] and layer.outputs == (self._model.final,)

    def _take(self, chain: Chain, begun: bool, session: LayerSession, layer: Layer) -> None:
        batches = len(self._batches) if chain is self._base else 1
        store = chain.begin(layer)
        for batch in range(batches):
            feeds = (chain if begun else self._base).inputs(layer, batch, session.input_names)
            store.write(batch, dict(zip(layer.outputs, session.run(feeds, layer.outputs), strict=True)))
        store.complete()
        if begun and chain is not self._base:
            chain.forget(layer)
        if chain is self._base:
            chain.forget(layer)

    # ------------------------------------------------------------------ divergences

    def _measurements(self) -> Iterator[Measurement]:
        last = self._model.layers[-1]
        wanted = self._base.outputs(last, 0)[last.outputs[0]]
        decodes = self._model.final != self._model.result
        head = replace(last, inputs=(self._model.final,), outputs=(self._model.result,))
        plain = self._model.open(head, head.outputs) if decodes else None
        for stream in self._streams:
            got = stream.chain.outputs(last, 0)[last.outputs[0]]
            top1 = None
            if plain is None:
                divergence = float(np.square(got - wanted).sum() / max(float(np.square(wanted).sum()), _LEAST))
            else:
                own = self._model.open(head, head.outputs, stream.replaced) if stream.replaced else plain
                divergence, top1 = self._compare(plain, own, wanted, got)
            yield Measurement(
                unit=self._units[stream.unit].title,
                format=stream.spec.label,
                error=stream.error,
                divergence=max(divergence, 0.0),
                top1_agreement=top1,
            )

    def _compare(self, plain: LayerSession, own: LayerSession, wanted: Array, got: Array) -> tuple[float, float]:
        """Mean KL divergence and top-1 agreement of two runs, from the inputs of the head [sequences, tokens, hidden]."""
        divergences, agreements = [], []
        for row in range(len(wanted)):
            for start in range(0, wanted.shape[1], PIECE):
                part = (slice(row, row + 1), slice(start, start + PIECE))
                reference, other = (
                    session.run({self._model.final: values[part]}, [self._model.result])[0][0]
                    for session, values in ((plain, wanted), (own, got))
                )
                divergences.append(kl_divergence(reference, other))
                agreements.append(same_top1(reference, other))
        return float(np.concatenate(divergences).mean()), float(np.concatenate(agreements).mean())


def predicted_losses(
    units: Sequence[Unit], columns: Sequence[str], errors: Table, measurements: Sequence[Measurement]
) -> Table:
    """Divergence [units, columns] for the relative errors [units, columns], by the curves that `measurements` give.

    A unit without measurements takes the mean of the logarithms of its neighbours' cost of an error, by the distance in layers.
    """
    points: dict[str, list[Measurement]] = {}
    for measurement in measurements:
        points.setdefault(measurement.unit, []).append(measurement)
    losses = np.zeros_like(errors)
    for row, unit in enumerate(units):
        own = points.get(unit.title)
        if own:
            losses[row] = _on_curve(errors[row], own)
            continue
        near = _neighbours(unit, units, points)
        if near:
            curves = [_on_curve(errors[row], points[other.title]) for other, _ in near]
            weights = np.array([1 / distance for _, distance in near])
            logarithms = np.log(np.maximum(curves, _LEAST))
            losses[row] = np.exp((weights[:, None] * logarithms).sum(axis=0) / weights.sum()) * (errors[row] > 0)
    return losses


def _on_curve(errors: npt.NDArray[np.float64], points: Sequence[Measurement]) -> npt.NDArray[np.float64]:
    """Divergences of relative `errors`: straight up to the finest point, a power law through the two behind it."""
    ordered = sorted(points, key=lambda point: point.error)
    fine, coarse = ordered[0], ordered[-1]
    base = max(fine.error, _LEAST)
    power = 1.0
    if coarse.error > fine.error > 0 and coarse.divergence > fine.divergence > 0:
        power = float(np.log(coarse.divergence / fine.divergence) / np.log(coarse.error / fine.error))
        power = min(max(power, _FLATTEST), _STEEPEST)
    ratio = errors / base
    curve: npt.NDArray[np.float64] = fine.divergence * np.where(ratio <= 1, ratio, ratio**power)
    return curve


def _neighbours(
    unit: Unit, units: Sequence[Unit], points: Mapping[str, Sequence[Measurement]]
) -> list[tuple[Unit, int]]:
    """The nearest measured unit of the same role on either side, with its distance; any measured unit where there is none."""
    alike = [other for other in units if other.title in points and other.role == unit.role and other.layer is not None]
    if unit.layer is None or not alike:
        return [(other, 1) for other in units if other.title in points]
    below = [other for other in alike if other.layer is not None and other.layer <= unit.layer]
    above = [other for other in alike if other.layer is not None and other.layer >= unit.layer]
    near = below[-1:] + above[:1]
    return [(other, max(1, abs((other.layer or 0) - unit.layer))) for other in near]


def _measured_units(units: Sequence[Unit], tokens: int) -> list[bool]:
    """Which units are measured: all, or those of every so many layers, so that the work stays within bounds."""
    parameters = sum(unit.elements for unit in units)
    # Two probes a unit; a probe runs through half of the model on average.
    operations = 2 * len(units) * tokens * parameters
    stride = max(1, round(operations / _MOST_OPERATIONS))
    last = max((unit.layer for unit in units if unit.layer is not None), default=0)
    return [unit.layer is None or unit.layer % stride == 0 or unit.layer == last for unit in units]


def _spec_of(unit: Unit, candidate: Candidate, name: str) -> WeightFormat:
    return next(chosen for matrix, chosen in zip(unit.matrices, candidate.chosen, strict=True) if matrix.name == name)


def _sample(weight: FloatMatrix) -> FloatMatrix:
    chosen = np.linspace(0, len(weight) - 1, min(_SAMPLE_ROWS, len(weight))).astype(int)
    return np.ascontiguousarray(weight[chosen], dtype=np.float32)


def _energy_of(rows: FloatMatrix, statistics: GroupStatistics) -> float:
    """Mean squared output of `rows` [N, K] on the calibration text, summed over the outputs."""
    if statistics.hessian is not None:
        return output_error(rows, statistics.hessian)
    return float((np.square(rows) @ statistics.energy).sum())
