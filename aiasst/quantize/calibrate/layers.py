"""A float graph as layers that run one after the other, each a small graph without weights. Knows no format and no text.

Where the cuts lie `anchors` decides: before the norm that feeds the first product of a decoder or encoder layer. The head,
with the final norm before it, is a layer of its own.

Weights are no part of the small graphs. They are handed to the session as arrays, memory-mapped from the source's file or
replaced by others of the same shape, so that memory holds the weights of one layer at most, and of an embedding the rows
that were looked up. Caches are fed empty: every sequence begins in its first token. A decoder computes all its rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aiasst.artifacts import signature
from aiasst.errors import ArtifactError
from aiasst.quantize.calibrate.anchors import Anchors, Life, Product, take_apart
from aiasst.quantize.calibrate.parts import Part, fed_inputs, fitting, is_big, is_cache, reads, values_of
from aiasst.quantize.inventory import Inventory
from aiasst.quantize.source import QuantizeSource
from aiasst.quantize.weights_file import read_array
from aiasst.runtime.session import GraphSession, SessionSettings

Array = npt.NDArray[Any]
Ids = npt.NDArray[np.int64]

POSITION_IDS = "position_ids"
"""Input of graphs that others made; ours derive positions from the mask."""


_HINT = "use an algorithm that looks at no text: --algorithm mse"


@dataclass(frozen=True)
class Group:
    """Products that read the same activation."""

    value: str
    """Name of the activation, [..., K]."""
    weights: tuple[str, ...]
    """Names of the weights, in the order of the graph."""


@dataclass(frozen=True)
class Layer:
    """A run of nodes between two cuts."""

    index: int
    title: str
    inputs: tuple[str, ...]
    """Values that enter: those alive at the cut before. Caches are not among them."""
    outputs: tuple[str, ...]
    """Values that leave: the inputs of the next layer; of the last one the model's result."""
    groups: tuple[Group, ...]
    """In the order of the graph. A weight that several products use counts where it is used first."""
    weights: tuple[str, ...]
    """Float constants of two dimensions or more that it reads: products, lookups, tables."""
    caches: tuple[str, ...] = ()
    """Outputs of the model that it computes beside its result: keys and values, what was in the cache included."""


class LayerSession:
    """A layer, or the part of it that some outputs need, opened."""

    def __init__(self, session: GraphSession | None, entering: tuple[str, ...], caches: Mapping[str, ir.Value]) -> None:
        self.input_names = entering
        """What must be fed."""
        self._session = session
        self._caches = caches

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> list[Array]:
        """Run one batch; `outputs` (None: all that are computed) may name inputs, which come back as they are.

        Raises:
            ArtifactError: the graph refuses the feeds or fails.
            ResourceError: memory is short.
        """
        if self._session is None:
            return [feeds[name] for name in (self.input_names if outputs is None else outputs)]
        names = self._session.output_names if outputs is None else outputs
        computed = [name for name in names if name in self._session.output_names]
        needed = {name: feeds[name] for name in self._session.input_names if name not in self._caches}
        results = dict(zip(computed, self._session.run(needed | self._empty(feeds), computed), strict=True))
        return [results[name] if name in results else feeds[name] for name in names]

    def _empty(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        if not self._caches:
            return {}
        rows = len(feeds[signature.INPUT_IDS])
        return {name: _empty_cache(value, rows) for name, value in self._caches.items()}


@dataclass(frozen=True)
class LayeredModel:
    """The layers of a model, ready to be opened."""

    layers: tuple[Layer, ...]
    final: str
    """Input of the head's product; the model's first output where there is no head."""
    result: str
    """The model's first output: logits, or hidden states."""
    _model: ir.Model = field(repr=False)

    def open(self, layer: Layer, outputs: Sequence[str], replaced: Mapping[str, Array] | None = None) -> LayerSession:
        """The part of `layer` that computes `outputs`, with the constants `replaced` in place of the originals.

        Outputs are values of the layer by name: what leaves it, the input of a group, `result`, its own inputs as well.
        Only what they need is run, so a head costs nothing unless `result` is asked for. Weights stay mapped while the
        session lives.

        Raises:
            ArtifactError: ONNX Runtime refuses the layer.
            ResourceError: memory is short.
            ValueError: an array has another shape than what it replaces (a mistake of the caller).
        """
        passed = [name for name in outputs if name in layer.inputs]
        computed = [name for name in dict.fromkeys(outputs) if name not in layer.inputs]
        if not computed:
            return LayerSession(None, tuple(passed), {})
        part = Part(self._values, layer.inputs, computed)
        caches = {name: value for name, value in part.entering.items() if is_cache(value) and not value.producer()}
        fed = [name for name in part.entering if name not in caches]
        if caches:
            fed.append(signature.INPUT_IDS)
        graph = part.serialize(self._model, replaced or {})
        session = GraphSession.open(graph, SessionSettings(arena=False), _arrays(part.weights, replaced or {}))
        return LayerSession(session, tuple(dict.fromkeys([*fed, *passed])), caches)

    def first_feeds(self, ids: Ids) -> dict[str, Array]:
        """The first layer's inputs for `ids` int64 [sequences, length]: no padding, no second segment."""
        return {name: _first_feed(self._values[name], ids) for name in self.layers[0].inputs}

    @cached_property
    def _values(self) -> dict[str, ir.Value]:
        return values_of(self._model.graph)


def cut_layers(source: QuantizeSource, inventory: Inventory) -> LayeredModel:
    """Cut the graph of `source`, which stays as it is.

    Raises:
        ArtifactError: it is no model of token ids, as far as can be seen.
    """
    graph = source.model.graph.clone()
    if signature.ALL_LOGITS in graph.initializers:
        graph.initializers[signature.ALL_LOGITS].const_value = ir.Tensor(np.array(True))
    _refuse_unknown_inputs(graph)
    for node in Anchors(graph, inventory).nodes_before_layers():
        take_apart(graph, node)
    model = ir.Model(graph, ir_version=source.model.ir_version)
    _learn_types(model)
    return _layered(model, Anchors(graph, inventory))


def _layered(model: ir.Model, anchors: Anchors) -> LayeredModel:
    results = _results(model.graph)
    # A result that a layer in the middle computes travels to the end; of a decoder the logits are all that counts.
    life = Life(model.graph, results if anchors.head is None else results[:1])
    cuts: dict[int, str] = {0: "embedding"}
    for anchor in anchors.anchors():
        cut = min(range(anchor.earliest, anchor.latest + 1), key=life.floats_alive)
        cuts[cut] = anchor.title
    bounds = [*sorted(cuts), len(anchors.nodes)]
    names = tuple(value.name or "" for value in results)
    final = names[0] if anchors.head is None else anchors.head.value
    alive = [life.names_alive(cut) for cut in bounds[:-1]] + [names if anchors.head is None else (final,)]
    seen: set[str] = set()
    layers = []
    for index, (begin, end) in enumerate(pairwise(bounds)):
        groups = _groups(anchors.products, begin, end, seen)
        weights = tuple(value.name or "" for value in _weights_read(anchors.nodes[begin:end]))
        caches = _caches(anchors.nodes[begin:end])
        layers.append(Layer(index, cuts[begin], alive[index], alive[index + 1], groups, weights, caches))
    return LayeredModel(tuple(layers), final, names[0], model)


def _results(graph: ir.Graph) -> list[ir.Value]:
    """The outputs, caches left out; logits first."""
    outputs = [value for value in graph.outputs if not _is_grown_cache(value)]
    return sorted(outputs, key=lambda value: value.name != signature.LOGITS)


def _caches(nodes: Iterable[ir.Node]) -> tuple[str, ...]:
    computed = (value for node in nodes for value in node.outputs if value.is_graph_output())
    return tuple(value.name or "" for value in computed if _is_grown_cache(value))


def _is_grown_cache(value: ir.Value) -> bool:
    return (value.name or "").startswith("present")


def _groups(products: Sequence[Product], begin: int, end: int, seen: set[str]) -> tuple[Group, ...]:
    """The products of nodes begin … end by what they read; weights in `seen` have had their turn."""
    groups: dict[str, list[str]] = {}
    for product in products:
        name = product.found.matrix.name
        if begin <= product.position < end and name not in seen:
            seen.add(name)
            groups.setdefault(product.value, []).append(name)
    return tuple(Group(value, tuple(names)) for value, names in groups.items())


def _weights_read(nodes: Iterable[ir.Node]) -> list[ir.Value]:
    read = {id(v): v for node in nodes for v in reads(node) if v.is_initializer() and is_big(v)}
    return [v for v in read.values() if v.const_value is not None and v.const_value.dtype.is_floating_point()]


def _arrays(weights: Iterable[ir.Value], replaced: Mapping[str, Array]) -> dict[str, Array]:
    """What the large constants hold, by name."""
    arrays: dict[str, Array] = {}
    for value in weights:
        name, tensor = value.name or "", value.const_value
        assert tensor is not None
        # Columns of a head that was cut are no array of their own.
        arrays[name] = fitting(replaced[name] if name in replaced else read_array(tensor), tensor)
    return arrays


def _learn_types(model: ir.Model) -> None:
    """Ask ONNX Runtime for the types that the graph does not tell: it finds them at opening, before anything is run."""
    values = values_of(model.graph)
    computed = [(name, value) for name, value in values.items() if value.producer() is not None]
    unknown = [name for name, value in computed if value.dtype is None and (value.uses() or value.is_graph_output())]
    if unknown:
        session = GraphSession.open(Part(values, (), unknown).serialize(model, {}), SessionSettings(arena=False))
        for name in unknown:
            values[name].type = ir.TensorType(ir.DataType.from_numpy(session.output_dtype(name)))


def _empty_cache(value: ir.Value, rows: int) -> Array:
    assert value.shape is not None and value.dtype is not None
    sizes = [size if isinstance(size, int) else 0 for size in value.shape]
    return np.zeros((rows, *sizes[1:]), dtype=value.dtype.numpy())


def _refuse_unknown_inputs(graph: ir.Graph) -> None:
    inputs = fed_inputs(graph)
    known = {signature.INPUT_IDS, signature.ATTENTION_MASK, signature.TOKEN_TYPE_IDS, POSITION_IDS}
    names = [value.name or "" for value in inputs if not is_cache(value)]
    odd = [name for name in names if name not in known]
    if signature.INPUT_IDS not in names or odd:
        raise ArtifactError(
            f"the graph cannot be fed a text: its inputs are {', '.join(names) or 'none'}, not token ids", _HINT
        )
    for value in inputs:
        if is_cache(value) and 0 not in _empty_cache(value, 1).shape:
            raise ArtifactError(f"the cache {value.name} has a fixed size and cannot be empty", _HINT)


def _first_feed(value: ir.Value, ids: Ids) -> Array:
    kind = np.int64 if value.dtype is None else value.dtype.numpy()
    if value.name == signature.INPUT_IDS:
        return ids.astype(kind)
    if value.name == POSITION_IDS:
        return np.broadcast_to(np.arange(ids.shape[1], dtype=kind), ids.shape).copy()
    return (np.zeros if value.name == signature.TOKEN_TYPE_IDS else np.ones)(ids.shape, dtype=kind)
