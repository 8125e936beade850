"""A float graph cut into layers that run one after the other, each a small graph without weights. Knows no format and no text.

A cut lies between two nodes of the topological order, before the norm that feeds the first product of a decoder or encoder
layer, where the fewest float values are alive: in the usual models the residual stream alone. A norm that is fused with the
addition before it is taken apart for that. The head, with the final norm before it, is a layer of its own.

Weights are no part of the small graphs. They are handed to the session as arrays, memory-mapped from the source's file or
replaced by others of the same shape, so that memory holds the weights of one layer at most, and of an embedding the rows
that were looked up. Caches are fed empty: every sequence begins in its first token. A decoder computes all its rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aiasst.artifacts import signature
from aiasst.errors import ArtifactError
from aiasst.quantize.inventory import Found, Inventory
from aiasst.quantize.source import QuantizeSource
from aiasst.quantize.weights_file import read_array
from aiasst.runtime.session import GraphSession, SessionSettings

Array = npt.NDArray[Any]
Ids = npt.NDArray[np.int64]

POSITION_IDS = "position_ids"
"""Input of graphs that others made; ours derive positions from the mask."""

# Smaller constants, and vectors, stay in the small graphs.
_WEIGHT_BYTES = 1024
# Products between two cuts where names tell no layers: those of a decoder layer.
_PRODUCTS_A_LAYER = 4
_HINT = "use an algorithm that looks at no text: --algorithm mse"

# Fused addition and norm → the norm alone, and which of its inputs are gamma, beta and a bias of the addition.
_FUSED_NORMS: dict[str, tuple[str, int, int | None, int]] = {
    "SkipSimplifiedLayerNormalization": ("SimplifiedLayerNormalization", 2, None, 3),
    "SkipLayerNormalization": ("LayerNormalization", 2, 3, 4),
}


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


class LayerSession:
    """A layer, or the part of it that some outputs need, opened."""

    def __init__(self, session: GraphSession, entering: tuple[str, ...], caches: Mapping[str, ir.Value]) -> None:
        self.input_names = entering
        """What must be fed."""
        self._session = session
        self._caches = caches

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> list[Array]:
        """Run one batch; `outputs` (None: all that were asked for at opening) may name inputs, which come back as they are.

        Raises:
            ArtifactError: the graph refuses the feeds or fails.
            ResourceError: memory is short.
        """
        names = self._session.output_names if outputs is None else outputs
        computed = [name for name in names if name not in feeds]
        needed = {name: feeds[name] for name in self._session.input_names if name not in self._caches}
        results = dict(zip(computed, self._session.run(needed | self._empty(feeds), computed), strict=True))
        return [results[name] if name in results else feeds[name] for name in names]

    def output_dtype(self, name: str) -> np.dtype[Any]:
        """Element type of a computed output."""
        return self._session.output_dtype(name)

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
    _types: dict[str, ir.DataType] = field(repr=False, default_factory=dict)
    """Of values that the graph tells no type of."""

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
        part = _Part(self._values, layer, outputs)
        fed = {name: value for name, value in part.entering.items() if name not in self._caches}
        passed = [name for name in outputs if name in layer.inputs]
        caches = {name: value for name, value in part.entering.items() if name in self._caches}
        entering = list(dict.fromkeys([*fed, *passed, *([signature.INPUT_IDS] if caches else [])]))
        weights = self._arrays(part.weights, replaced or {})
        session = GraphSession.open(self._bytes(part, replaced or {}), SessionSettings(arena=False), weights)
        return LayerSession(session, tuple(entering), caches)

    def first_feeds(self, ids: Ids) -> dict[str, Array]:
        """The first layer's inputs for `ids` int64 [sequences, length]: no padding, no second segment."""
        return {name: _first_feed(self._values[name], ids) for name in self.layers[0].inputs}

    @cached_property
    def _values(self) -> dict[str, ir.Value]:
        return _values_of(self._model.graph)

    @cached_property
    def _caches(self) -> frozenset[str]:
        return frozenset(value.name or "" for value in _fed_inputs(self._model.graph) if _is_cache(value))

    def _arrays(self, weights: Iterable[ir.Value], replaced: Mapping[str, Array]) -> dict[str, Array]:
        arrays: dict[str, Array] = {}
        for value in weights:
            name, tensor = value.name or "", value.const_value
            assert tensor is not None
            arrays[name] = _fitting(replaced[name], tensor) if name in replaced else read_array(tensor)
        return arrays

    def _bytes(self, part: _Part, replaced: Mapping[str, Array]) -> bytes:
        """The little graph as ONNX Runtime reads it."""
        big = {value.name for value in part.weights}
        view = ir.GraphView(
            [*part.entering.values(), *part.weights],
            part.computed,
            nodes=part.nodes,
            initializers=part.constants,
            opset_imports=self._model.graph.opset_imports,
            name=part.title,
        )
        graph = view.clone()
        for value in graph.inputs:
            if value.name in big:
                assert value.const_value is not None
                value.type = ir.TensorType(value.const_value.dtype)
                value.shape = ir.Shape(tuple(int(d) for d in value.const_value.shape.numpy()))
                value.const_value = None
                continue
            if value.name in self._types:
                value.type = ir.TensorType(self._types[value.name])
            if self._values[value.name or ""].producer() is not None:
                value.shape = None
        for name, value in graph.initializers.items():
            assert value.const_value is not None
            array = _fitting(replaced[name], value.const_value) if name in replaced else None
            value.const_value = _inline(value.const_value, name) if array is None else ir.Tensor(array, name=name)
        for node in graph:
            for value in node.outputs:
                # The shapes that a graph tells need not hold for an empty cache and all rows.
                value.shape = None
        model = ir.Model(graph, ir_version=self._model.ir_version)
        serialized: bytes = ir.to_proto(model).SerializeToString()
        return serialized


def cut_layers(source: QuantizeSource, inventory: Inventory) -> LayeredModel:
    """Cut the graph of `source`, which stays as it is.

    Raises:
        ArtifactError: it is no model of token ids, as far as can be seen.
    """
    graph = source.model.graph.clone()
    if signature.ALL_LOGITS in graph.initializers:
        graph.initializers[signature.ALL_LOGITS].const_value = ir.Tensor(np.array(True))
    _refuse_unknown_inputs(graph)
    plan = _Anchors(graph, inventory)
    for node in plan.nodes_before_layers():
        _take_apart(graph, node)
    model = ir.Model(graph, ir_version=source.model.ir_version)
    return _layered(model, _Anchors(graph, inventory))


# ---------------------------------------------------------------------- where to cut


@dataclass(frozen=True)
class _Product:
    """A node that multiplies with a weight of the inventory."""

    position: int
    found: Found
    value: str
    """What it reads."""


@dataclass(frozen=True)
class _Anchor:
    """Where a layer begins at the latest: its first product, and how far before it the cut may lie."""

    earliest: int
    latest: int
    title: str


class _Anchors:
    """The products of a graph, and those with which a layer begins."""

    def __init__(self, graph: ir.Graph, inventory: Inventory) -> None:
        self.nodes = list(graph)
        self.graph = graph
        self._position = {id(node): index for index, node in enumerate(self.nodes)}
        self.products = self._find(inventory)
        self.head = self._head(inventory)
        self._last_lookup = self._find_last_lookup(inventory)

    def nodes_before_layers(self) -> Iterator[ir.Node]:
        """The nodes among which the cuts will lie."""
        for anchor in self.anchors():
            yield from self.nodes[anchor.earliest : anchor.latest]

    def anchors(self) -> list[_Anchor]:
        """In the order of the graph."""
        begins = self._numbered() or self._counted()
        anchors = []
        for index, title in begins:
            latest = self.products[index].position
            earliest = self.products[index - 1].position + 1 if index else min(self._last_lookup + 1, latest)
            anchors.append(_Anchor(earliest, latest, title))
        return anchors

    def _find(self, inventory: Inventory) -> list[_Product]:
        products = []
        for found in inventory.found:
            wanted = {(use.node.op_type, use.node.name) for use in found.uses if not use.lookup}
            for node, index in self.graph.initializers[found.matrix.name].uses():
                value = node.inputs[0]
                if (
                    index == 1
                    and (node.op_type, node.name) in wanted
                    and value is not None
                    and id(node) in self._position
                ):
                    products.append(_Product(self._position[id(node)], found, value.name or ""))
        return sorted(products, key=lambda product: product.position)

    def _find_last_lookup(self, inventory: Inventory) -> int:
        first = self.products[0].position if self.products else len(self.nodes)
        lookups = [
            self._position.get(id(node), -1)
            for found in inventory.found
            if found.matrix.looks_up
            for node, index in self.graph.initializers[found.matrix.name].uses()
            if index == 0
        ]
        return max((position for position in lookups if position < first), default=-1)

    def _head(self, inventory: Inventory) -> _Product | None:
        """The product that makes the logits: the last one, when its weight is called so or has a row for each token."""
        if not self.products:
            return None
        last = self.products[-1]
        matrix = last.found.matrix
        vocabularies = {found.matrix.n for found in inventory.found if found.matrix.role == "embed"}
        called = matrix.planned_role == "lm_head"
        return last if called or (matrix.layer is None and matrix.n in vocabularies) else None

    def _numbered(self) -> list[tuple[int, str]]:
        """(index of the first product, title) of the layers that weights are numbered by; none where the order is another."""
        numbers = [None if product is self.head else product.found.matrix.layer for product in self.products]
        known = [number for number in numbers if number is not None]
        if not known or known != sorted(known):
            return []
        begins = [(numbers.index(number), f"layer {number}") for number in dict.fromkeys(known)]
        behind = len(numbers) - numbers[::-1].index(known[-1])
        return [*begins, (behind, "head")] if behind < len(numbers) else begins

    def _counted(self) -> list[tuple[int, str]]:
        inner = len(self.products) - (self.head is not None)
        begins = [(index, f"products from {index}") for index in range(0, inner, _PRODUCTS_A_LAYER)]
        return [*begins, (inner, "head")] if self.head is not None else begins


def _layered(model: ir.Model, anchors: _Anchors) -> LayeredModel:
    graph = model.graph
    life = _Life(graph)
    cuts: dict[int, str] = {0: "embedding"}
    for anchor in anchors.anchors():
        cut = min(range(anchor.earliest, anchor.latest + 1), key=life.floats_alive)
        cuts[cut] = anchor.title
    bounds = [*sorted(cuts), len(anchors.nodes)]
    final = anchors.head.value if anchors.head is not None else life.results[0].name or ""
    results = (final,) if anchors.head is not None else tuple(value.name or "" for value in life.results)
    alive = [life.names_alive(cut) for cut in bounds[:-1]] + [results]
    seen: set[str] = set()
    layers = []
    for index, (begin, end) in enumerate(pairwise(bounds)):
        groups = _groups(anchors.products, begin, end, seen)
        weights = tuple(value.name or "" for value in _weights_read(anchors.nodes[begin:end]))
        layers.append(Layer(index, cuts[begin], alive[index], alive[index + 1], groups, weights))
    layered = LayeredModel(tuple(layers), final, life.results[0].name or "", model)
    _learn_types(layered)
    return layered


def _groups(products: Sequence[_Product], begin: int, end: int, seen: set[str]) -> tuple[Group, ...]:
    """The products of nodes begin … end by what they read; weights in `seen` have had their turn."""
    groups: dict[str, list[str]] = {}
    for product in products:
        name = product.found.matrix.name
        if begin <= product.position < end and name not in seen:
            seen.add(name)
            groups.setdefault(product.value, []).append(name)
    return tuple(Group(value, tuple(names)) for value, names in groups.items())


class _Life:
    """From which node to which node each value of a graph is needed."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self.results = [value for value in graph.outputs if not _is_present(value)]
        """The outputs, caches left out."""
        self._spans: dict[str, tuple[int, int, bool]] = {}
        needed = _needed({id(value): value for value in self.results}.values())
        nodes = list(graph)
        begins = {id(value): index + 1 for index, node in enumerate(nodes) for value in node.outputs}
        begins |= {id(value): 0 for value in _fed_inputs(graph)}
        self._caches_until = -1
        for index, node in enumerate(nodes):
            for value in _reads(node, graph) if id(node) in needed else ():
                if id(value) not in begins:
                    continue
                if begins[id(value)] == 0 and _is_cache(value):
                    self._caches_until = index
                    continue
                self._spans[value.name or ""] = (
                    begins[id(value)],
                    index,
                    begins[id(value)] > 0 and _may_be_float(value),
                )

    def names_alive(self, cut: int) -> tuple[str, ...]:
        """What is needed behind `cut` (nodes before it) and was there before."""
        names = [name for name, (begin, last, _) in self._spans.items() if begin <= cut <= last]
        # The size of an empty cache follows from the ids.
        if cut <= self._caches_until and signature.INPUT_IDS not in names:
            names.append(signature.INPUT_IDS)
        return tuple(names)

    def floats_alive(self, cut: int) -> int:
        """How many float values a cut has to keep; many where there is none yet, so that a layer begins behind the lookups."""
        count = sum(is_float for begin, last, is_float in self._spans.values() if begin <= cut <= last)
        return count or len(self._spans) + 1


# ---------------------------------------------------------------------- a part of the graph


class _Part:
    """The nodes of a layer that some outputs need, and what they read from outside."""

    def __init__(self, values: Mapping[str, ir.Value], layer: Layer, outputs: Sequence[str]) -> None:
        entering = set(layer.inputs)
        self.title = layer.title
        self.computed = [values[name] for name in outputs if name not in entering]
        nodes: dict[int, ir.Node] = {}
        self.entering: dict[str, ir.Value] = {}
        constants: dict[str, ir.Value] = {}
        graph = next(iter(values.values())).graph
        waiting = list(self.computed)
        while waiting:
            value = waiting.pop()
            name, producer = value.name or "", value.producer()
            if value.is_initializer():
                constants[name] = value
            elif name in entering or producer is None:
                self.entering[name] = value
            elif id(producer) not in nodes:
                nodes[id(producer)] = producer
                waiting += _reads(producer, producer.graph if graph is None else graph)
        self.nodes = [node for node in _graph_of(nodes.values()) if id(node) in nodes]
        self.weights = [value for value in constants.values() if _is_big(value)]
        self.constants = [value for value in constants.values() if not _is_big(value)]


def _graph_of(nodes: Iterable[ir.Node]) -> Iterable[ir.Node]:
    first = next(iter(nodes), None)
    graph = None if first is None else first.graph
    return () if graph is None else graph


def _values_of(graph: ir.Graph) -> dict[str, ir.Value]:
    values = {value.name or "": value for value in (*graph.inputs, *graph.initializers.values())}
    return values | {value.name: value for node in graph for value in node.outputs if value.name}


def _reads(node: ir.Node, graph: Any) -> list[ir.Value]:
    """What `node` reads of `graph`, in its branches and loops as well."""
    values = [value for value in node.inputs if value is not None]
    for attribute in node.attributes.values():
        inner = [attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH else []
        inner += list(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else []
        for part in inner:
            for below in ir.traversal.RecursiveGraphIterator(part):
                values += [value for value in below.inputs if value is not None and value.graph is graph]
            values += [value for value in part.outputs if value.graph is graph]
    return values


def _needed(results: Iterable[ir.Value]) -> set[int]:
    """The nodes (by id) that `results` depend on."""
    nodes: set[int] = set()
    waiting = list(results)
    while waiting:
        node = waiting.pop().producer()
        if node is not None and id(node) not in nodes:
            nodes.add(id(node))
            waiting += _reads(node, node.graph)
    return nodes


def _weights_read(nodes: Iterable[ir.Node]) -> list[ir.Value]:
    read = {id(v): v for node in nodes for v in _reads(node, node.graph) if v.is_initializer() and _is_big(v)}
    return [v for v in read.values() if v.const_value is not None and v.const_value.dtype.is_floating_point()]


def _is_big(value: ir.Value) -> bool:
    """Whether a constant is handed over as an array: matrices and tables that numpy has a type for."""
    tensor = value.const_value
    if tensor is None or len(tensor.shape) < 2 or tensor.nbytes < _WEIGHT_BYTES:
        return False
    return tensor.dtype in _NUMPY_TYPES


_NUMPY_TYPES = frozenset(
    {
        ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.INT64, ir.DataType.INT32,
        ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.BOOL,
    }
)  # fmt: skip


def _inline(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    """A tensor that needs no file."""
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor
    if tensor.dtype in _NUMPY_TYPES:
        return ir.Tensor(np.array(read_array(tensor)), name=name)
    return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name)


def _fitting(array: Array, tensor: ir.TensorProtocol) -> Array:
    shape = tuple(int(d) for d in tensor.shape.numpy())
    if array.shape != shape:
        raise ValueError(f"an array of shape {array.shape} cannot replace {tensor.name} of shape {shape}")
    return np.ascontiguousarray(array, dtype=tensor.dtype.numpy())


def _learn_types(layered: LayeredModel) -> None:
    """Ask ONNX Runtime for the types that the graph does not tell, layer by layer."""
    for layer in layered.layers:
        unknown = [n for n in layer.outputs if n not in layer.inputs and layered._values[n].dtype is None]
        if unknown:
            session = layered.open(layer, unknown)
            layered._types.update({n: ir.DataType.from_numpy(session.output_dtype(n)) for n in unknown})


# ---------------------------------------------------------------------- what the graph is fed


def _fed_inputs(graph: ir.Graph) -> list[ir.Value]:
    """Inputs without a constant behind them."""
    return [value for value in graph.inputs if not value.is_initializer()]


def _is_cache(value: ir.Value) -> bool:
    """Keys and values of tokens before: a float input of three dimensions or more."""
    rank = 0 if value.shape is None else len(value.shape)
    return value.dtype is not None and value.dtype.is_floating_point() and rank >= 3


def _is_present(value: ir.Value) -> bool:
    return (value.name or "").startswith("present")


def _may_be_float(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype.is_floating_point()


def _empty_cache(value: ir.Value, rows: int) -> Array:
    assert value.shape is not None and value.dtype is not None
    sizes = [size if isinstance(size, int) else 0 for size in value.shape]
    return np.zeros((rows, *sizes[1:]), dtype=value.dtype.numpy())


def _refuse_unknown_inputs(graph: ir.Graph) -> None:
    inputs = _fed_inputs(graph)
    known = {signature.INPUT_IDS, signature.ATTENTION_MASK, signature.TOKEN_TYPE_IDS, POSITION_IDS}
    names = [value.name or "" for value in inputs if not _is_cache(value)]
    odd = [name for name in names if name not in known]
    if signature.INPUT_IDS not in names or odd:
        raise ArtifactError(
            f"the graph cannot be fed a text: its inputs are {', '.join(names) or 'none'}, not token ids", _HINT
        )
    for value in inputs:
        if _is_cache(value) and 0 not in _empty_cache(value, 1).shape:
            raise ArtifactError(f"the cache {value.name} has a fixed size and cannot be empty", _HINT)


def _first_feed(value: ir.Value, ids: Ids) -> Array:
    kind = np.int64 if value.dtype is None else value.dtype.numpy()
    if value.name == signature.INPUT_IDS:
        return ids.astype(kind)
    if value.name == POSITION_IDS:
        return np.broadcast_to(np.arange(ids.shape[1], dtype=kind), ids.shape).copy()
    return (np.zeros if value.name == signature.TOKEN_TYPE_IDS else np.ones)(ids.shape, dtype=kind)


# ---------------------------------------------------------------------- fused norms


def _take_apart(graph: ir.Graph, node: ir.Node) -> None:
    """A fused addition and norm → an Add and a norm, which compute the same, so that a cut can lie between the two."""
    if node.op_type not in _FUSED_NORMS:
        return
    kind, gamma_at, beta_at, bias_at = _FUSED_NORMS[node.op_type]
    inputs = [*node.inputs, *[None] * (bias_at + 1 - len(node.inputs))]
    added, fresh = inputs[0], list[ir.Node]()
    for addend in (inputs[1], inputs[bias_at]):
        if addend is not None:
            add = ir.node("Add", [added, addend])
            fresh.append(add)
            added = add.outputs[0]
    constants = [inputs[gamma_at], None if beta_at is None else inputs[beta_at]]
    epsilon = node.attributes.get("epsilon")
    settings = {"axis": -1, "epsilon": 1e-5 if epsilon is None else epsilon.as_float()}
    norm = ir.node(kind, [added, *(c for c in constants if c is not None)], attributes=settings, name=node.name)
    old, new = [node.outputs[0]], [norm.outputs[0]]
    if len(node.outputs) > 3 and added is not None:
        old.append(node.outputs[3])
        new.append(added)
    for before, after in zip(old, new, strict=True):
        after.name, after.type, after.shape = before.name, before.type, before.shape
    ir.convenience.replace_nodes_and_values(graph, node, [node], [*fresh, norm], old, new)
