"""Variants of a model that walk through its layers together: what rounding some of the weights does to the model's results.

A variant is some weights with the formats they are rounded to; the rest stays as it is. All variants share one float chain until
the first layer in which they differ from it. A layer is opened once for every set of rounded weights, variants stand on disk
between layers, and so memory is that of one layer. Rounding looks at statistics of the float chain on other text than the
variants are measured on. Knows no budget and chooses nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aiasst.artifacts.recipe import WeightFormat
from aiasst.progress import Progress, ProgressFn, silent
from aiasst.quantize import algorithms
from aiasst.quantize.algorithms import Algorithm, InputStatistics
from aiasst.quantize.calibrate import folding, rounding
from aiasst.quantize.calibrate.chains import Chain
from aiasst.quantize.calibrate.layers import Group, Layer, LayeredModel, LayerSession
from aiasst.quantize.calibrate.rounding import GroupStatistics, Member
from aiasst.quantize.calibrate.statistics import Accumulator
from aiasst.quantize.corrections.tied import tied_hessian
from aiasst.quantize.grid import Grid, Quantized
from aiasst.quantize.inventory import Inventory
from aiasst.quantize.matrix import FloatMatrix

Array = npt.NDArray[Any]
Ids = npt.NDArray[np.int64]
FloatVector = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

Variant = Mapping[str, WeightFormat]
"""Name of a rounded weight → its format."""

STAGE = "sensitivity"
PLAIN = "mse"
# What scales are chosen for where formats are not known yet: the one that needs them most among those in use.
_USUAL = WeightFormat(format="int4", block_size=128)
# Share of a layer's work that looking ahead through one takes.
_AHEAD = 0.02
# Tokens whose logits are in memory at once.
_PIECE = 64
# Share of a sequence whose tokens have too little before them to be predicted.
_CONTEXT = 4


@dataclass(frozen=True)
class Text:
    """What a walk looks at, in batches of token ids [sequences, length]."""

    seen: tuple[Ids, ...]
    """For the statistics that rounding goes by."""
    probes: tuple[Ids, ...]
    """For measuring."""


@dataclass(frozen=True)
class GroupView:
    """What is known of the input of some products while the walk is there; statistics and inputs are without `scales`."""

    group: Group
    members: tuple[Member, ...]
    statistics: InputStatistics
    """Of the inputs divided by `scales`."""
    scales: FloatVector | None
    """Of the input channels, folded into the norm before."""
    inputs: FloatMatrix
    """Activations [tokens, K] on the probes, divided by `scales`."""


Look = Callable[[GroupView], None]


@dataclass(frozen=True)
class Losses:
    """What each variant does to the result."""

    kl: Doubles
    """Mean KL divergence from the float model in nats, [variants]; of a model without logits the relative squared error."""
    top1: Doubles
    """Share of tokens with the same likeliest next token, [variants]; 1 of a model without logits."""


class Streams:
    """The walks of one model and text."""

    def __init__(self, model: LayeredModel, inventory: Inventory, text: Text, algorithm: Algorithm, work: Path) -> None:
        """`work` is an empty or absent folder; `algorithm` rounds."""
        self._model = model
        self.text = text
        self._algorithm = algorithm
        self._work = work
        self._found = {found.matrix.name: found for found in inventory.found}
        self._folds = folding.find_norms(inventory.found) if algorithm.EQUALIZES else {}
        self._behind: dict[str, GroupStatistics] = {}

    def walk(self, variants: Sequence[Variant], look: Look | None = None, progress: ProgressFn = silent) -> Losses:
        """Take all `variants` through the layers; `look` is shown every group of products on the way.

        Raises:
            ArtifactError: a layer does not run.
            OSError: the disk is full.
        """
        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir(parents=True)
        if any(self._needs_looking_ahead(variant) for variant in variants):
            self._look_ahead(progress)
        walk = _Walk(self._model, self.text, self._work, variants)
        kept: dict[tuple[str, WeightFormat], FloatMatrix] = {}
        layers = self._model.layers
        for layer in layers:
            progress(
                Progress(
                    STAGE, layer.index + _AHEAD * len(layers), len(layers), f"layer {layer.index + 1} of {len(layers)}"
                )
            )
            rounded = self._rounded(layer, walk, variants, look) | kept
            if layer is layers[-1]:
                losses = walk.finish(layer, rounded)
            else:
                walk.advance(layer, rounded)
            # A weight that is looked up in one layer and multiplied in another.
            later = {name for following in layers[layer.index + 1 :] for name in following.weights}
            kept = {key: weight for key, weight in rounded.items() if key[0] in later}
        progress(Progress(STAGE, len(layers), len(layers)))
        shutil.rmtree(self._work, ignore_errors=True)
        return losses

    def _rounded(
        self, layer: Layer, walk: _Walk, variants: Sequence[Variant], look: Look | None
    ) -> dict[tuple[str, WeightFormat], FloatMatrix]:
        """Every weight of the layer in every format that a variant has it in, laid out as in the source."""
        wanted = dict.fromkeys((name, spec) for variant in variants for name, spec in variant.items())
        rounded: dict[tuple[str, WeightFormat], FloatMatrix] = {}
        for name, spec in wanted:
            if name in layer.weights and self._found[name].matrix.looks_up and name not in walk.seen:
                rounded[name, spec] = self._stored(name, spec, self._behind.get(name), None)
        walk.seen |= {name for name, _ in rounded}
        for group in layer.groups:
            mine = [(n, spec) for n, spec in wanted if n in group.weights and not self._found[n].matrix.looks_up]
            if not mine and look is None:
                continue
            members = tuple(Member(self._found[name], _USUAL) for name in group.weights if name in self._found)
            if not members:
                continue
            statistics = self._collect(walk.text, layer, group, members[0].found.matrix.k)
            scales = self._scales(group, members, statistics)
            if scales is not None:
                statistics.divide(scales)
            for name, spec in mine:
                rounded[name, spec] = self._stored(name, spec, statistics, scales)
            if look is not None:
                inputs: FloatMatrix = np.concatenate(
                    [_rows(v[group.value]) for v in walk.float.run(layer, [group.value])]
                )
                if scales is not None:
                    inputs /= scales
                known = InputStatistics(statistics.rows, statistics.energy, statistics.hessian)
                look(GroupView(group, members, known, scales, inputs))
        return rounded

    def _stored(
        self, name: str, spec: WeightFormat, statistics: GroupStatistics | None, scales: FloatVector | None
    ) -> FloatMatrix:
        member = Member(self._found[name], spec)
        if self._algorithm.NEEDS == "nothing":
            statistics = None
        plain = statistics is None or (statistics.hessian is None and self._algorithm.NEEDS == "hessian")
        algorithm = algorithms.load(PLAIN) if plain else quickly(self._algorithm)
        content = rounding.round_member(member, statistics, scales, algorithm)
        return rounding.stored_weight(member.found.matrix, content, scales, spec)

    def _collect(self, chain: Chain, layer: Layer, group: Group, width: int) -> GroupStatistics:
        wants = self._algorithm.NEEDS == "hessian"
        seen = Accumulator(width, hessian=wants)
        for values in chain.run(layer, [group.value]):
            seen.add(_rows(values[group.value]))
        return GroupStatistics(seen.rows, seen.energy(), seen.hessian() if wants else None)

    def _scales(self, group: Group, members: Sequence[Member], statistics: GroupStatistics) -> FloatVector | None:
        fold = self._folds.get(group.value)
        if fold is None or {member.found.matrix.name for member in members} != set(fold.weights):
            return None
        return rounding.find_scales(members, statistics)

    def _needs_looking_ahead(self, variant: Variant) -> bool:
        tied = (name for name in variant if self._found[name].matrix.tied)
        return self._algorithm.NEEDS == "hessian" and any(name not in self._behind for name in tied)

    def _look_ahead(self, progress: ProgressFn) -> None:
        """Statistics of the inputs of tied heads, which are rounded before the first layer."""
        chain = Chain(self._model, self._work / "ahead", "text", self.text.seen)
        for layer in self._model.layers:
            # A little is done: a stage at 0 would count as one that starts over.
            done = _AHEAD * (layer.index + 1)
            progress(Progress(STAGE, done, len(self._model.layers), f"looking ahead: layer {layer.index + 1}"))
            for group in layer.groups:
                tied = [name for name in group.weights if name in self._found and self._found[name].matrix.tied]
                if tied:
                    statistics = self._collect(chain, layer, group, self._found[tied[0]].matrix.k)
                    if statistics.hessian is not None:
                        statistics.hessian = tied_hessian(statistics.hessian)
                    self._behind |= dict.fromkeys(tied, statistics)
            if layer is not self._model.layers[-1]:
                chain.advance(layer)
                chain.forget(layer)
        shutil.rmtree(self._work / "ahead", ignore_errors=True)


def quickly(algorithm: Algorithm) -> Algorithm:
    """`algorithm` at its quickest, for comparing; its inputs are taken as the float model has them."""
    return _Quick(algorithm)


class _Quick:
    """See `quickly`."""

    PROPAGATES = False

    def __init__(self, of: Algorithm) -> None:
        self.NEEDS = of.NEEDS
        self.EQUALIZES = of.EQUALIZES
        self._quantize = getattr(of, "quickly", of.quantize)

    def quantize(self, weight: FloatMatrix, grid: Grid, statistics: InputStatistics | None = None) -> Quantized:
        """By the algorithm's `quickly` where it has one."""
        result: Quantized = self._quantize(weight, grid, statistics)
        return result


class _Walk:
    """Where the float chains and the variants stand."""

    def __init__(self, model: LayeredModel, text: Text, work: Path, variants: Sequence[Variant]) -> None:
        self._model = model
        self._variants = variants
        self._probes, self._seen = text.probes, text.seen
        self.text = Chain(model, work, "text", text.seen)
        self.float = Chain(model, work, "float", text.probes)
        self._chains = [Chain(model, work, f"variant-{number}", text.probes) for number in range(len(variants))]
        self._departed = [False] * len(variants)
        self.seen: set[str] = set()
        """Weights that a layer before has rounded."""

    def advance(self, layer: Layer, rounded: Mapping[tuple[str, WeightFormat], FloatMatrix]) -> None:
        """Take everything behind `layer`."""
        for chosen, numbers in self._by_weights(layer).items():
            session = self._model.open(layer, layer.outputs, {name: rounded[name, spec] for name, spec in chosen})
            if not chosen:
                _through(session, self.text, self.text, layer, range(len(self._seen)))
                _through(session, self.float, self.float, layer, range(len(self._probes)))
            for number in numbers:
                _through(session, self._where(number), self._chains[number], layer, range(len(self._probes)))
                if self._departed[number]:
                    self._chains[number].forget(layer)
                self._departed[number] = True
            del session
        self.text.forget(layer)
        self.float.forget(layer)

    def finish(self, layer: Layer, rounded: Mapping[tuple[str, WeightFormat], FloatMatrix]) -> Losses:
        """Take everything through the last layer and compare the results."""
        kl, top1 = np.zeros(len(self._variants)), np.ones(len(self._variants))
        has_logits = self._model.final != self._model.result
        compare = _compare_logits if has_logits else _compare_states
        head = replace(layer, inputs=(self._model.final,), outputs=(self._model.result,)) if has_logits else layer
        for chosen, numbers in self._by_weights(layer).items():
            others = {name: rounded[name, spec] for name, spec in chosen}
            before = self._model.open(layer, [self._model.final], others) if has_logits else None
            plain = self._model.open(layer, [self._model.final]) if has_logits else None
            changed = self._model.open(head, [self._model.result], others)
            original = self._model.open(head, [self._model.result]) if chosen else changed
            tallies = [_Tally() for _ in numbers]
            for batch in range(len(self._probes)):
                reference = self.float.inputs(layer, batch, layer.inputs)
                entering = [self._where(number).inputs(layer, batch, layer.inputs) for number in numbers]
                if before is not None and plain is not None:
                    reference = {self._model.final: _only(plain, reference, self._model.final)}
                    entering = [{self._model.final: _only(before, e, self._model.final)} for e in entering]
                compare(original, changed, reference, entering, self._model.result, tallies)
            for number, tally in zip(numbers, tallies, strict=True):
                kl[number], top1[number] = tally.loss(), tally.agreement()
        return Losses(kl, top1)

    def _where(self, number: int) -> Chain:
        return self._chains[number] if self._departed[number] else self.float

    def _by_weights(self, layer: Layer) -> dict[tuple[tuple[str, WeightFormat], ...], list[int]]:
        """Rounded weights of `layer` → the variants that have them; first those that have none here but are under way."""
        groups: dict[tuple[tuple[str, WeightFormat], ...], list[int]] = {(): []}
        for number, variant in enumerate(self._variants):
            chosen = tuple((name, spec) for name, spec in variant.items() if name in layer.weights)
            if chosen or self._departed[number]:
                groups.setdefault(chosen, []).append(number)
        return groups


def _through(session: LayerSession, begins: Chain, ends: Chain, layer: Layer, batches: Sequence[int]) -> None:
    store = ends.begin(layer)
    for batch in batches:
        feeds = begins.inputs(layer, batch, session.input_names)
        store.write(batch, dict(zip(layer.outputs, session.run(feeds, layer.outputs), strict=True)))
    store.complete()


def _only(session: LayerSession, entering: Mapping[str, Array], name: str) -> Array:
    return session.run({key: entering[key] for key in session.input_names}, [name])[0]


def _rows(values: Array) -> FloatMatrix:
    """[..., K] → [tokens, K]."""
    return values.reshape(-1, values.shape[-1])


# ---------------------------------------------------------------------- what is compared


@dataclass
class _Tally:
    """Sums over tokens."""

    divergence: float = 0.0
    weight: float = 0.0
    same: float = 0.0
    tokens: int = 0

    def loss(self) -> float:
        return self.divergence / max(self.weight, 1e-30)

    def agreement(self) -> float:
        return self.same / self.tokens if self.tokens else 1.0


_Entering = Mapping[str, Array]


def _compare_logits(
    original: LayerSession,
    changed: LayerSession,
    reference: _Entering,
    entering: Sequence[_Entering],
    result: str,
    tallies: Sequence[_Tally],
) -> None:
    """KL divergence and agreement of the tokens that have some text before them, piece by piece."""
    for piece, *others in zip(_pieces(reference), *(_pieces(e) for e in entering), strict=True):
        wanted = _log_softmax(original.run(piece, [result])[0])
        likely, best = np.exp(wanted), wanted.argmax(-1)
        for other, tally in zip(others, tallies, strict=True):
            got = _log_softmax(changed.run(other, [result])[0])
            tally.same += float((best == got.argmax(-1)).sum())
            np.subtract(wanted, got, out=got)
            tally.divergence += float(np.einsum("abv,abv->ab", likely, got).sum(dtype=np.float64))
            tally.tokens += best.size
            tally.weight = tally.tokens


def _pieces(entering: _Entering) -> Iterator[dict[str, Array]]:
    """Hidden states [sequences, T, K], some tokens of a sequence at a time."""
    ((name, states),) = entering.items()
    begin = states.shape[1] // _CONTEXT
    for row in range(len(states)):
        for start in range(begin, states.shape[1], _PIECE):
            yield {name: np.ascontiguousarray(states[row : row + 1, start : start + _PIECE])}


def _log_softmax(logits: Array) -> npt.NDArray[np.float32]:
    shifted: npt.NDArray[np.float32] = logits.astype(np.float32) - logits.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def _compare_states(
    original: LayerSession,
    changed: LayerSession,
    reference: _Entering,
    entering: Sequence[_Entering],
    result: str,
    tallies: Sequence[_Tally],
) -> None:
    wanted = _only(original, reference, result)
    for other, tally in zip(entering, tallies, strict=True):
        tally.divergence += float(np.square(_only(changed, other, result) - wanted, dtype=np.float64).sum())
        tally.weight += float(np.square(wanted, dtype=np.float64).sum())
