"""How much loss each unit causes in each format: errors of products, turned into KL divergence by what was really measured.

The error of a product's output is cheap and says how formats compare within a unit (`proxy`). What an error of that size does to
the model's answers is measured for some units in two formats, one coarse and one usual (`streams`), and between and beyond them

    loss = a * error^p      p from the two measurements, between 1/2 and 3/2, and 1 below the finer of them

For small errors the KL divergence is quadratic in the change of the logits, hence p = 1; and since the changes of different units
point in unrelated directions, their losses add up. On the story model the sum over all units comes to 102-105% of the loss of
all together, at 4 and at 2 bits. Units of layers that were not measured lie between their neighbours of the same role.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aiasst.artifacts.document import write_text_atomically
from aiasst.artifacts.recipe import WeightFormat
from aiasst.progress import ProgressFn, silent
from aiasst.quantize.algorithms import Algorithm
from aiasst.quantize.inventory import Found
from aiasst.quantize.matrix import Matrix
from aiasst.quantize.planning import proxy
from aiasst.quantize.planning.streams import GroupView, Streams, Variant, quickly
from aiasst.quantize.planning.units import Candidate, Unit

Doubles = npt.NDArray[np.float64]

_COARSE, _USUAL = ("int2-b64", "int2-b128", "int4-b256"), ("int4-b128", "int4-b64", "int4-b256", "int8-b128")
_LOWEST_POWER, _HIGHEST_POWER = 0.5, 1.5
# Losses below this are rounding of the float32 logits.
_FLOOR = 1e-9


@dataclass(frozen=True)
class Measured:
    """A unit rounded alone, in truth."""

    unit: str
    label: str
    kl: float
    top1: float


@dataclass(frozen=True)
class Sensitivity:
    """What was found out about a model; saved as JSON beside the work, so that another budget begins with it."""

    units: tuple[str, ...]
    """Titles."""
    errors: Mapping[str, Mapping[str, float]]
    """Unit → format → relative squared error of its outputs, weights and inputs rounded."""
    weight_errors: Mapping[str, Mapping[str, float]]
    """The same with the weights alone rounded, as they are where losses are measured."""
    measured: tuple[Measured, ...]

    def save(self, path: Path, key: str) -> None:
        """Write it, whole or not at all, with the `key` of what it is about."""
        write_text_atomically(path, json.dumps({"key": key, **asdict(self)}, indent=1))

    @classmethod
    def load(cls, path: Path, key: str) -> Sensitivity | None:
        """What was saved with the same key; None where there is nothing that can be used."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["key"] != key:
                return None
            measured = tuple(Measured(**row) for row in found["measured"])
            return cls(tuple(found["units"]), found["errors"], found["weight_errors"], measured)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def losses(self, units: Sequence[Unit], columns: Sequence[str]) -> Doubles:
        """Predicted KL divergence in nats, [units, columns]; 0 where a unit has no such format."""
        curves = self._curves(units)
        table = np.zeros((len(units), len(columns)))
        for row, unit in enumerate(units):
            for candidate in unit.candidates:
                error = self.errors[unit.title][candidate.label]
                table[row, columns.index(candidate.label)] = curves[unit.title].loss(error)
        return table

    def _curves(self, units: Sequence[Unit]) -> dict[str, _Curve]:
        known = {unit.title: curve for unit in units if (curve := self._curve(unit.title)) is not None}
        return {unit.title: known.get(unit.title) or _between(unit, units, known) for unit in units}

    def _curve(self, unit: str) -> _Curve | None:
        points = sorted(
            (max(self.weight_errors[unit][m.label], 1e-30), max(m.kl, _FLOOR)) for m in self.measured if m.unit == unit
        )
        if not points:
            return None
        (error, loss), (coarse_error, coarse_loss) = points[0], points[-1]
        power = 1.0
        if coarse_error > error * 1.5:
            power = float(np.log(coarse_loss / loss) / np.log(coarse_error / error))
        return _Curve(error, loss, min(max(power, _LOWEST_POWER), _HIGHEST_POWER))


@dataclass(frozen=True)
class _Curve:
    """Loss of a unit as a function of the error of its outputs."""

    error: float
    """A measured point, the finest."""
    factor: float
    """The loss there."""
    power: float
    """Of the error beyond it."""

    def loss(self, error: float) -> float:
        ratio = error / self.error
        return float(self.factor * (ratio**self.power if ratio > 1 else ratio))


def _between(unit: Unit, units: Sequence[Unit], known: Mapping[str, _Curve]) -> _Curve:
    """The curve of a unit that was not measured: between those of its role in the layers around it."""
    same = [(other.layer, known[other.title]) for other in units if other.role == unit.role and other.title in known]
    layers = [(layer, curve) for layer, curve in same if layer is not None]
    if not layers or unit.layer is None:
        curves = [curve for _, curve in same] or list(known.values()) or [_Curve(1.0, 1.0, 1.0)]
        return curves[0]
    layers.sort(key=lambda pair: pair[0])
    at = [layer for layer, _ in layers]
    slope = np.interp(unit.layer, at, [np.log(curve.factor / curve.error) for _, curve in layers])
    error = float(np.exp(np.interp(unit.layer, at, [np.log(curve.error) for _, curve in layers])))
    power = float(np.interp(unit.layer, at, [curve.power for _, curve in layers]))
    return _Curve(error, float(np.exp(slope)) * error, power)


def measure(
    streams: Streams,
    units: Sequence[Unit],
    found: Mapping[str, Found],
    algorithm: Algorithm,
    *,
    most: int,
    progress: ProgressFn = silent,
) -> Sensitivity:
    """Look at every unit of a model, and measure about `most` variants of it in truth.

    Raises:
        ArtifactError: a layer does not run.
        OSError: the disk is full.
    """
    probed = chosen_units(units, most)
    trials = [(unit, candidate) for unit in probed for candidate in two_formats(unit)]
    look = _Look(units, found, algorithm)
    losses = streams.walk([variant_of([pair]) for pair in trials], look, progress)
    measured = tuple(
        Measured(unit.title, candidate.label, float(kl), float(top1))
        for (unit, candidate), kl, top1 in zip(trials, losses.kl, losses.top1, strict=True)
    )
    errors = {unit.title: look.errors_of(unit) for unit in units}
    return Sensitivity(
        tuple(unit.title for unit in units),
        {title: {label: pair.both for label, pair in by_label.items()} for title, by_label in errors.items()},
        {title: {label: pair.weight for label, pair in by_label.items()} for title, by_label in errors.items()},
        measured,
    )


def variant_of(chosen: Sequence[tuple[Unit, Candidate]]) -> Variant:
    """The weights of some units in the formats of their candidates; what stays fp32 is left out."""
    return {
        matrix.name: spec
        for unit, candidate in chosen
        for matrix, spec in zip(unit.matrices, candidate.chosen, strict=True)
        if spec.format != "fp32"
    }


def two_formats(unit: Unit) -> tuple[Candidate, ...]:
    """The coarse and the usual format that a unit is measured in; fewer where it has no such candidates."""
    by_label = {candidate.label: candidate for candidate in unit.candidates}
    picked = (next((by_label[label] for label in labels if label in by_label), None) for labels in (_COARSE, _USUAL))
    fallback = unit.candidates[:1]
    return tuple(dict.fromkeys(candidate for candidate in picked if candidate is not None)) or fallback


def chosen_units(units: Sequence[Unit], most: int) -> list[Unit]:
    """The units whose loss is measured: all that lie in no layer, and of each role as many layers as `most` trials allow."""
    layerless = [unit for unit in units if unit.layer is None]
    layers = sorted({unit.layer for unit in units if unit.layer is not None})
    if not layers:
        return layerless
    a_layer = sum(unit.layer is not None for unit in units) / len(layers)
    room = max(2, int((most / 2 - len(layerless)) / a_layer))
    picked = {layers[round(i)] for i in np.linspace(0, len(layers) - 1, min(room, len(layers)))}
    return [unit for unit in units if unit.layer is None or unit.layer in picked]


class _Look:
    """Collects the errors of products while a walk passes them."""

    def __init__(self, units: Sequence[Unit], found: Mapping[str, Found], algorithm: Algorithm) -> None:
        self._specs: dict[str, set[WeightFormat]] = {}
        for unit in units:
            for candidate in unit.candidates:
                for matrix, spec in zip(unit.matrices, candidate.chosen, strict=True):
                    self._specs.setdefault(matrix.name, set()).add(spec)
        self._found = found
        self._algorithm = quickly(algorithm)
        self._errors: dict[tuple[str, WeightFormat], proxy.Errors] = {}

    def __call__(self, view: GroupView) -> None:
        """Errors of every product of a group in every format that it may have."""
        for member in view.members:
            name = member.found.matrix.name
            rows = proxy.sample(member.found)
            if view.scales is not None:
                rows *= view.scales
            for spec in self._specs.get(name, ()):
                self._errors[name, spec] = proxy.product_errors(
                    rows, spec, self._algorithm, view.statistics, view.inputs, tied=member.found.matrix.tied
                )

    def errors_of(self, unit: Unit) -> dict[str, proxy.Errors]:
        """Format → mean over the unit's matrices."""
        result = {}
        for candidate in unit.candidates:
            pairs = [self._error(m, spec) for m, spec in zip(unit.matrices, candidate.chosen, strict=True)]
            result[candidate.label] = proxy.Errors(
                float(np.mean([pair.weight for pair in pairs])), float(np.mean([pair.both for pair in pairs]))
            )
        return result

    def _error(self, matrix: Matrix, spec: WeightFormat) -> proxy.Errors:
        """What the walk has shown; of a weight that is only looked up, the error of its rows."""
        if (matrix.name, spec) not in self._errors:
            error = proxy.lookup_error(proxy.sample(self._found[matrix.name]), spec)
            self._errors[matrix.name, spec] = proxy.Errors(error, error)
        return self._errors[matrix.name, spec]
