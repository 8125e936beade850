"""The layers of a model in numbers, and what running them takes: bytes and operations. Reads no weights and knows no format."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from aiasst.quantize.calibrate import folding
from aiasst.quantize.calibrate.layers import Layer, LayeredModel
from aiasst.quantize.inventory import Inventory
from aiasst.quantize.matrix import Matrix
from aiasst.quantize.phases import A_NUMBER, A_SESSION, FLOAT
from aiasst.quantize.source import QuantizeSource

# What is alive at once inside a layer, in copies of its widest product's result (both halves of a gated MLP, before and
# after they are cut apart), and of the hidden states beside it.
_WIDEST_COPIES, _HIDDEN_COPIES = 2.5, 4
# Passes over the results of products that no product makes: norms, activations, rotary angles.
_PASSES = 0.15
# Operators of attention that hold the scores of all pairs of tokens; GroupQueryAttention takes them tile by tile.
_WHOLE_SCORES = frozenset({"Attention", "MultiHeadAttention"})
_TILED = "GroupQueryAttention"
# Scores, masked scores and their softmax, where the graph spells attention out.
_SPELLED_OUT_COPIES = 3
_USUAL_HEAD = 64
# Bytes that the system maps around one that is read.
_AROUND = 1 << 16


@dataclass(frozen=True)
class GroupShape:
    """Products that read one activation."""

    width: int
    """K of the activation."""
    weights: tuple[Matrix, ...]
    folds: bool = False
    """Scales can be folded into the norm before it."""

    @property
    def elements(self) -> int:
        """Numbers of its weights."""
        return sum(matrix.elements for matrix in self.weights)


@dataclass(frozen=True)
class LayerShape:
    """One layer."""

    groups: tuple[GroupShape, ...]
    """In the order of the graph."""
    lookups: tuple[Matrix, ...] = ()
    """Embeddings, of which a few rows are read."""
    unread: int = 0
    """How many of the last groups are rounded and not run: what lies behind a head's input."""

    @property
    def run(self) -> tuple[GroupShape, ...]:
        """The groups whose products a session runs."""
        return self.groups[: len(self.groups) - self.unread]

    @property
    def elements(self) -> int:
        """Weights that a token is multiplied with."""
        return sum(group.elements for group in self.run)

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """All weights, lookups included."""
        return (*(matrix for group in self.groups for matrix in group.weights), *self.lookups)

    def before(self, number: int) -> int:
        """Weights that a token is multiplied with on its way to the input of group `number`."""
        return sum(group.elements for group in self.run[:number])


@dataclass(frozen=True)
class ModelShape:
    """A model."""

    layers: tuple[LayerShape, ...]
    hidden: int
    """Width of what passes from layer to layer."""
    heads: int
    score_copies: int = 0
    """Copies of the attention scores [heads, tokens, tokens] that are in memory at once."""
    predicts: bool = True
    """The last group makes logits."""

    @property
    def head(self) -> tuple[Matrix, ...]:
        """The weights that make the logits; none of a model without a head."""
        return self.layers[-1].groups[-1].weights if self.predicts and self.layers[-1].groups else ()

    @property
    def vocabulary(self) -> int:
        """Logits of a token."""
        return sum(matrix.n for matrix in self.head)

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """All weights, each once."""
        return tuple({matrix.name: matrix for layer in self.layers for matrix in layer.matrices}.values())

    def activations(self, layer: LayerShape, sequences: int, length: int) -> float:
        """Bytes alive at once inside a session that takes `sequences` of `length` tokens through `layer`."""
        tokens = sequences * length
        widest = max((sum(matrix.n for matrix in group.weights) for group in layer.run), default=0)
        scores = self.score_copies * self.heads * length * tokens * FLOAT if layer.run else 0
        wide = FLOAT * tokens * _WIDEST_COPIES * widest
        return FLOAT * tokens * _HIDDEN_COPIES * self.hidden + max(wide, scores)

    def running(self, layer: LayerShape, tokens: int, length: int, sessions: int = 1) -> float:
        """Operations of taking `tokens`, in sequences of `length`, through the whole of `layer`, opened `sessions` times."""
        return self.part(layer, len(layer.run), tokens, length) + A_SESSION * sessions

    def part(self, layer: LayerShape, number: int, tokens: int, length: int) -> float:
        """Operations of taking `tokens` through `layer` as far as the input of group `number`."""
        groups = layer.run[:number]
        numbers = sum(matrix.n + matrix.k for group in groups for matrix in group.weights)
        attention = 4 * length * self.hidden if number > 1 else 0
        return tokens * (2 * layer.before(number) + attention + _PASSES * A_NUMBER * numbers)

    def mapped(self, layer: LayerShape, tokens: int) -> int:
        """Bytes of the weights that a session of `layer` reads for a text of `tokens`: of an embedding the rows around each."""
        tables = sum(min(FLOAT * matrix.elements, tokens * _AROUND) for matrix in layer.lookups)
        return FLOAT * layer.elements + tables


def shape_of(source: QuantizeSource, layered: LayeredModel, inventory: Inventory) -> ModelShape:
    """The numbers of a model that was cut into layers."""
    matrices = {found.matrix.name: found.matrix for found in inventory.found}
    hidden = source.shape.hidden_size if source.shape else max((m.k for m in matrices.values()), default=1)
    folds = frozenset(folding.find_norms(inventory.found))
    return ModelShape(
        layers=tuple(_layer(layer, layered, matrices, folds) for layer in layered.layers),
        hidden=hidden,
        heads=source.shape.heads if source.shape else max(1, hidden // _USUAL_HEAD),
        score_copies=_score_copies(source.model.graph),
        predicts=layered.final != layered.result,
    )


def _layer(layer: Layer, layered: LayeredModel, matrices: dict[str, Matrix], folds: frozenset[str]) -> LayerShape:
    groups = [
        GroupShape(known[0].k, tuple(known), group.value in folds)
        for group in layer.groups
        if (known := _known(group.weights, matrices))
    ]
    multiplied = {name for group in layer.groups for name in group.weights}
    lookups = [m for m in _known(layer.weights, matrices) if m.looks_up and m.name not in multiplied]
    last = layer is layered.layers[-1] and bool(groups)
    return LayerShape(tuple(groups), tuple(lookups), unread=int(last))


def _known(names: Iterable[str], matrices: dict[str, Matrix]) -> list[Matrix]:
    return [matrices[name] for name in names if name in matrices]


def _score_copies(graph: ir.Graph) -> int:
    kinds = {node.op_type for node in graph}
    if kinds & _WHOLE_SCORES:
        return 1
    if _TILED in kinds:
        return int(any(_softcap(node) for node in graph if node.op_type == _TILED))
    return _SPELLED_OUT_COPIES


def _softcap(node: ir.Node) -> float:
    """Bound of the scores; where there is one they are not taken tile by tile."""
    attribute = node.attributes.get("softcap")
    return 0.0 if attribute is None else attribute.as_float()
