"""Calibration from the first layer to the last: rounds group by group, keeps what is finished. Knows no mathematics.

Two chains of activations walk through the layers on the same tokens: the float chain with the weights as they are, and the
quantized chain with those that are rounded already. Inside a layer the products are taken in groups that read one
activation; the weights of earlier groups are in place when the inputs of a later one are looked at. One session is open at
a time, and what passes from one to the next lies on disk.
"""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aiasst.artifacts.recipe import RANGED_FORMATS
from aiasst.errors import ArtifactError, ResourceError
from aiasst.progress import Progress, ProgressFn, silent
from aiasst.quantize import algorithms
from aiasst.quantize.calibrate import folding, rounding
from aiasst.quantize.calibrate.activations import ActivationStore
from aiasst.quantize.calibrate.chains import Chain
from aiasst.quantize.calibrate.contents import Contents, FinishedContents, PlainContents, weight_rows
from aiasst.quantize.calibrate.layers import Group, Layer
from aiasst.quantize.calibrate.rounding import GroupStatistics, Member
from aiasst.quantize.calibrate.state import StepResult, WorkState
from aiasst.quantize.calibrate.statistics import Accumulator
from aiasst.quantize.calibrate.task import Task
from aiasst.quantize.corrections.tied import tied_hessian
from aiasst.quantize.grid import Quantized
from aiasst.quantize.matrix import FloatMatrix
from aiasst.quantize.ranges import InputRange, RangeFinder
from aiasst.quantize.rewrite import added_bias

Array = npt.NDArray[Any]
FloatVector = npt.NDArray[np.float32]

STAGE = "calibrate"
PLAIN = "mse"
"""Rounds what calibration has nothing to say about: embeddings, products that no layer has."""
_LOOKUPS = "lookups"
# The format whose inputs are rounded a row at a time: one channel of outliers spoils a row.
_BY_ROW = "w8a8"
# From here on a tied head is so finely rounded that looking ahead for its inputs does not pay.
_FINE_BITS = 8
# Share of the work after which the time for the rest is worth telling.
_ENOUGH_TO_TELL = 0.02


def calibrate(
    task: Task, state: WorkState, progress: ProgressFn = silent, *, lookups: Contents | None = None
) -> FinishedContents:
    """Round every planned weight that a layer multiplies with; goes on where `state` stopped.

    Args:
        task: what to do.
        state: where finished work is kept.
        progress: told of every layer.
        lookups: embeddings that are rounded already; None: they are rounded first.

    Raises:
        ResourceError: the disk or the memory is full; what is finished stays in `state`.
        ArtifactError: a weight or an activation is not finite, or a layer does not run.
    """
    with _keeping_what_is_done(state.folder):
        _Walk(task, state, progress, lookups).run()
    return FinishedContents(state, PlainContents(task.plan, algorithms.load(PLAIN)))


@contextmanager
def _keeping_what_is_done(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ResourceError(
            f"the disk is full: {folder} could not be written; the layers that are finished are kept there",
            "free some space and give the same command again: it goes on where it stopped",
        ) from error


class _Walk:
    """One way through the layers."""

    def __init__(self, task: Task, state: WorkState, progress: ProgressFn, lookups: Contents | None) -> None:
        self.task = task
        self.lookups = lookups
        self.state = state
        self.clock = _Clock(task.costs, progress)
        self.found = {found.matrix.name: found for found in task.inventory.found}
        self.folds = folding.find_norms(task.inventory.found) if task.algorithm.EQUALIZES else {}
        ids, step = task.samples.ids, task.estimate.sequences_at_once
        self.batches = [ids[start : start + step] for start in range(0, len(ids), step)]
        self.float = Chain(task.layered, state.boundaries, "float", self.batches)
        self.quantized = Chain(task.layered, state.boundaries, "quantized", self.batches)

    def run(self) -> None:
        """All layers that are not finished yet."""
        layers, error = self.task.layered.layers, 0.0
        self._check_boundaries()
        if not self.state.finished(_LOOKUPS):
            self.state.save(_LOOKUPS, StepResult(self._rounded_lookups(), {}, {}, 0.0))
        for number, layer in enumerate(layers):
            if self.state.finished(_step(layer)):
                error = self.state.error(_step(layer))
                self.clock.skip(number)
                continue
            for share in _LayerRun(self, layer, last=layer is layers[-1], error=error).work():
                self.clock.tell(number, share, error)
            error = self.state.error(_step(layer))
            self.clock.tell(number, 1.0, error)

    def _check_boundaries(self) -> None:
        """Begin anew where somebody took away what the first unfinished layer would read."""
        layer = next((layer for layer in self.task.layered.layers if not self.state.finished(_step(layer))), None)
        if layer is not None and not (self.float.ready(layer) and self.quantized.ready(layer)):
            self.state.begin_anew()

    def member(self, name: str) -> Member:
        """A weight with its planned format."""
        return Member(self.found[name], self.task.plan.format_of(name))

    def collect(
        self,
        pairs: Iterable[tuple[Array, Array | None]],
        width: int,
        *,
        cross: bool,
        finder: RangeFinder | None = None,
    ) -> GroupStatistics:
        """Statistics of activations [..., K] of the quantized chain, with those of the float chain where they are known.

        `finder` is shown the same rows of the quantized chain.
        """
        seen = Accumulator(width, hessian=self.task.algorithm.NEEDS == "hessian", cross=cross)
        compared = False
        for x, original in pairs:
            compared = original is not None
            if finder is not None:
                finder.add(x.reshape(-1, width))
            seen.add(x.reshape(-1, width), None if original is None else original.reshape(-1, width))
        return GroupStatistics(
            seen.rows,
            seen.energy(),
            seen.hessian() if self.task.algorithm.NEEDS == "hessian" else None,
            seen.cross() if cross else None,
            seen.mean_float() if compared else None,
            seen.mean_quantized() if compared else None,
        )

    # ------------------------------------------------------------------ before the first layer

    def _rounded_lookups(self) -> dict[str, Quantized | FloatMatrix]:
        """Embeddings, whose rows the quantized chain begins with; a head that is tied to one is rounded here too."""
        rounded: dict[str, Quantized | FloatMatrix] = {}
        # The pieces of a head that was cut read the same.
        behind: dict[int, GroupStatistics | None] = {}
        for found in self.task.inventory.found:
            member = self.member(found.matrix.name)
            if not found.matrix.looks_up or member.grid is None:
                continue
            if self.lookups is not None:
                content = self.lookups.matrix(found)
                assert content is not None
                rounded[found.matrix.name] = content
                continue
            statistics = None
            if found.matrix.tied and member.grid.bits < _FINE_BITS:
                if found.matrix.k not in behind:
                    behind[found.matrix.k] = self._statistics_behind_all_layers(found.matrix.name)
                statistics = behind[found.matrix.k]
            algorithm = algorithms.load(PLAIN) if statistics is None else self.task.algorithm
            rounded[found.matrix.name] = rounding.round_member(member, statistics, None, algorithm)
        return rounded

    def _statistics_behind_all_layers(self, name: str) -> GroupStatistics | None:
        """Of the float chain's input of a tied head: the quantized chain cannot begin before its weight is rounded."""
        chain = Chain(self.task.layered, self.state.folder / "ahead", "float", self.batches)
        layers = self.task.layered.layers
        for number, layer in enumerate(layers):
            for group in layer.groups:
                if name in group.weights:
                    inputs = ((values[group.value], None) for values in chain.run(layer, [group.value]))
                    statistics = self.collect(inputs, self.found[name].matrix.k, cross=False)
                    if statistics.hessian is not None:
                        statistics = replace(statistics, hessian=tied_hessian(statistics.hessian))
                    shutil.rmtree(self.state.folder / "ahead")
                    return statistics
            self.clock.look_ahead(number)
            if not chain.ready(layers[number + 1]):
                chain.advance(layer)
            chain.forget(layer)
        return None


class _LayerRun:
    """One layer: both chains go through it, and its weights are rounded on the way."""

    def __init__(self, walk: _Walk, layer: Layer, *, last: bool, error: float) -> None:
        """`error` is the relative error of what enters."""
        self._walk = walk
        self._error = error
        self._layer = layer
        self._last = last
        self._groups = self._groups_to_round()
        self._compared = [group.value for group, members in self._groups if self._compares(members)]
        self._matrices: dict[str, Quantized | FloatMatrix] = {}
        self._vectors: dict[str, FloatVector] = {}
        self._ranges: dict[str, InputRange] = {}
        self._replaced: dict[str, Array] = self._rounded_before()

    def work(self) -> Iterator[float]:
        """Round the layer's weights, take both chains behind it, and keep what was found; yields the share that is done."""
        yield 0.0
        self._run_float()
        parts = len(self._groups) + 2
        for number, (group, members) in enumerate(self._groups):
            yield (number + 1) / parts
            self._round_group(group, members)
        yield (parts - 1) / parts
        error = self._run_quantized()
        self._walk.state.save(_step(self._layer), StepResult(self._matrices, self._vectors, self._ranges, error))
        shutil.rmtree(self._staging, ignore_errors=True)
        self._walk.float.forget(self._layer)
        self._walk.quantized.forget(self._layer)

    @property
    def _staging(self) -> Path:
        return self._walk.state.folder / "staged"

    def _groups_to_round(self) -> list[tuple[Group, list[Member]]]:
        """The groups that have a weight to round, each with all its weights that no earlier step has rounded."""
        groups = []
        for group in self._layer.groups:
            names = [name for name in group.weights if name in self._walk.found and not self._walk.state.holds(name)]
            members = [self._walk.member(name) for name in names]
            if any(member.grid is not None for member in members):
                groups.append((group, members))
        return groups

    def _rounded_before(self) -> dict[str, Array]:
        """What earlier steps have rounded and this layer reads, mapped from files: of an embedding few rows are read."""
        state = self._walk.state
        names = [name for name in self._layer.weights if name in self._walk.found and state.holds(name)]
        return {name: state.mapped(name, partial(_stored, self._walk.member(name), state)) for name in names}

    # ------------------------------------------------------------------ the chains

    def _run_float(self) -> None:
        """Once through the layer: the inputs of its groups are kept until it is done, its outputs until the next one is."""
        outputs = () if self._last else self._layer.outputs
        wanted = tuple(dict.fromkeys((*self._compared, *outputs)))
        if not wanted:
            return
        shutil.rmtree(self._staging, ignore_errors=True)
        staged = {value: self._staged(value) for value in self._compared}
        boundary = None if self._last else self._walk.float.begin(self._layer)
        for batch, values in enumerate(self._walk.float.run(self._layer, wanted)):
            for value, store in staged.items():
                store.write(batch, {value: values[value]})
            if boundary is not None:
                boundary.write(batch, {name: values[name] for name in outputs})
        if boundary is not None:
            boundary.complete()

    def _run_quantized(self) -> float:
        """Take the quantized chain behind the layer; returns the relative error there."""
        if self._last:
            return self._error
        boundary = self._walk.quantized.begin(self._layer)
        error = size = 0.0
        for batch, values in enumerate(self._walk.quantized.run(self._layer, self._layer.outputs, self._replaced)):
            boundary.write(batch, values)
            originals = self._walk.float.outputs(self._layer, batch)
            for name, value in values.items():
                if np.issubdtype(value.dtype, np.floating):
                    error += _square(value - originals[name])
                    size += _square(originals[name])
        boundary.complete()
        return error / max(size, 1e-30)

    def _staged(self, value: str) -> ActivationStore:
        return ActivationStore(self._staging / str(self._compared.index(value)))

    def _compares(self, members: Sequence[Member]) -> bool:
        """Whether the float chain's inputs of a group are needed beside the quantized chain's."""
        return self._walk.task.algorithm.PROPAGATES or any(_private_bias(member) is not None for member in members)

    # ------------------------------------------------------------------ the weights

    def _round_group(self, group: Group, members: Sequence[Member]) -> None:
        finder = _range_finder(members)
        statistics = self._collect(group, members, finder)
        means = statistics.mean_float, statistics.mean_quantized
        scales = self._fold(group, members, statistics)
        scales = self._range(members, statistics, scales, finder)
        if scales is not None:
            statistics.divide(scales)
        for member in members:
            matrix = member.found.matrix
            if member.grid is None and scales is None:
                continue
            algorithm, last = self._walk.task.algorithm, member is members[-1]
            content = rounding.round_member(member, statistics, scales, algorithm, last=last)
            self._matrices[matrix.name] = content
            bias = _private_bias(member)
            if self._last and group is self._groups[-1][0] and bias is None:
                # Nobody runs what comes after, and a head is large.
                continue
            stored = rounding.stored_weight(matrix, content, scales, member.spec)
            self._replaced[matrix.name] = stored
            if bias is not None and bias.name is not None and means[0] is not None and means[1] is not None:
                original = weight_rows(member.found)
                corrected = rounding.corrected_bias(_vector(bias), matrix, original, stored, means[0], means[1])
                self._vectors[bias.name] = self._replaced[bias.name] = corrected

    def _range(
        self,
        members: Sequence[Member],
        statistics: GroupStatistics,
        scales: FloatVector | None,
        finder: RangeFinder | None,
    ) -> FloatVector | None:
        """Fix how the inputs of the group are rounded, where its formats leave that to calibration.

        Returns what the inputs are divided by then: `scales` that a norm has taken, or divisors, which an extra product takes
        (the residual stream reads the norm as well, as in BERT). For the weights it makes no difference which.
        """
        formats = {member.spec.format for member in members}
        smooth = scales is None and self._walk.task.algorithm.EQUALIZES and _is_behind_norm(members[0])
        found = None
        if finder is not None:
            whole = smooth and formats <= RANGED_FORMATS
            found = rounding.find_range(members, finder, scales, smooth=whole)
            members = [member for member in members if member.spec.format in RANGED_FORMATS]
        elif smooth and formats == {_BY_ROW}:
            divisors = rounding.find_scales(members, statistics)
            found = InputRange(0.0, 0.0, divisors, by_row=True) if np.ptp(divisors) else None
        if found is not None:
            self._ranges |= dict.fromkeys((member.found.matrix.name for member in members), found)
        return scales if found is None or found.divisors is None else found.divisors

    def _collect(self, group: Group, members: Sequence[Member], finder: RangeFinder | None) -> GroupStatistics:
        """Statistics of what the group reads, its tokens one batch after the other."""
        compares = group.value in self._compared
        inputs = self._walk.quantized.run(self._layer, [group.value], self._replaced)
        originals = self._staged(group.value) if compares else None
        pairs = (
            (values[group.value], None if originals is None else originals.read(batch)[group.value])
            for batch, values in enumerate(inputs)
        )
        width = members[0].found.matrix.k
        statistics = self._walk.collect(pairs, width, cross=self._walk.task.algorithm.PROPAGATES, finder=finder)
        if not np.isfinite(statistics.energy).all():
            raise ArtifactError(
                f"the inputs of {members[0].found.matrix.name} are not finite on the calibration text",
                "the checkpoint overflows in float32, or is damaged: --algorithm mse looks at no text",
            )
        return statistics

    def _fold(self, group: Group, members: Sequence[Member], statistics: GroupStatistics) -> FloatVector | None:
        """Scales of the group's inputs, folded into the norm before it; None where that takes none."""
        fold = self._walk.folds.get(group.value)
        if fold is None or {member.found.matrix.name for member in members} != set(fold.weights):
            return None
        scales = rounding.find_scales(members, statistics)
        constants = self._walk.task.graph.initializers
        self._vectors |= {name: folding.divide(_vector(constants[name]), scales) for name in fold.vectors}
        return scales


class _Clock:
    """Tells how far the work has come, and how long the rest will take at the speed so far."""

    def __init__(self, costs: Sequence[float], progress: ProgressFn) -> None:
        self._costs = costs
        self._progress = progress
        self._begin = time.monotonic()
        self._skipped = 0.0

    def skip(self, number: int) -> None:
        """Layer `number` was done by an earlier run."""
        self._skipped += self._costs[number]

    def look_ahead(self, number: int) -> None:
        """Layer `number` is run for what comes behind it."""
        self._progress(Progress(STAGE, 0, sum(self._costs), f"looking ahead: layer {number + 1} of {len(self._costs)}"))

    def tell(self, number: int, share: float, error: float) -> None:
        """A `share` (0 … 1) of layer `number` is done; `error` is that of the layers before."""
        total = sum(self._costs)
        done = sum(self._costs[:number]) + share * self._costs[number]
        note = f"layer {number + 1} of {len(self._costs)}, error so far {error:.2g}"
        fresh = done - self._skipped
        if fresh > _ENOUGH_TO_TELL * total:
            left = (total - done) * (time.monotonic() - self._begin) / fresh
            note += f", {_duration(left)} left"
        self._progress(Progress(STAGE, done, total, note))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _step(layer: Layer) -> str:
    return f"layer-{layer.index:04}"


def _square(values: Array) -> float:
    return float(np.square(values, dtype=np.float64).sum())


def _stored(member: Member, state: WorkState) -> FloatMatrix:
    matrix = member.found.matrix
    return rounding.stored_weight(matrix, state.matrix(matrix.name), None, member.spec)


def _vector(value: ir.Value) -> FloatVector:
    assert value.const_value is not None
    return np.array(value.const_value.numpy(), dtype=np.float32)


def _range_finder(members: Sequence[Member]) -> RangeFinder | None:
    """What chooses the range of the group's inputs; None where no format fixes one."""
    ranged = any(member.spec.format in RANGED_FORMATS for member in members)
    return RangeFinder(members[0].found.matrix.k) if ranged else None


def _is_behind_norm(member: Member) -> bool:
    value = member.found.uses[0].node.inputs[0]
    return value is not None and folding.is_norm(value.producer())


def _private_bias(member: Member) -> ir.Value | None:
    """The constant that is added to the product with a rounded weight and to nothing else; None where there is none."""
    uses = member.found.uses
    if member.grid is None or len(uses) != 1 or uses[0].lookup:
        return None
    bias = added_bias(uses[0].node, member.found.matrix.n).bias
    return bias if bias is not None and len(tuple(bias.uses())) == 1 else None
