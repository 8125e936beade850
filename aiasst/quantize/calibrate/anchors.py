"""Where a graph can be cut into layers: before the first product of each, where the least is alive. Knows no weights.

A cut lies between two nodes of the topological order. Which products belong to one layer their names tell; where they do
not, every few products are one. Between the last product of a layer and the first one of the next, the cut lies where the
fewest float values are needed further on: in the usual models the residual stream alone, right before the norm. A norm that
is fused with the addition before it is taken apart for that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from aiasst.artifacts import signature
from aiasst.quantize.calibrate.parts import fed_inputs, is_cache, nodes_for, reads
from aiasst.quantize.inventory import Found, Inventory

# Products between two cuts where names tell no layers: those of a decoder layer.
_PRODUCTS_A_LAYER = 4

# Fused addition and norm → the norm alone, and which of its inputs are gamma, beta and a bias of the addition.
_FUSED_NORMS: dict[str, tuple[str, int, int | None, int]] = {
    "SkipSimplifiedLayerNormalization": ("SimplifiedLayerNormalization", 2, None, 3),
    "SkipLayerNormalization": ("LayerNormalization", 2, 3, 4),
}


@dataclass(frozen=True)
class Product:
    """A node that multiplies with a weight of the inventory."""

    position: int
    found: Found
    value: str
    """What it reads."""


@dataclass(frozen=True)
class Anchor:
    """Where a layer begins at the latest: its first product, and how far before it the cut may lie."""

    earliest: int
    latest: int
    title: str


class Anchors:
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

    def anchors(self) -> list[Anchor]:
        """In the order of the graph."""
        begins = self._numbered() or self._counted()
        anchors = []
        for index, title in begins:
            latest = self.products[index].position
            earliest = self.products[index - 1].position + 1 if index else min(self._last_lookup + 1, latest)
            anchors.append(Anchor(earliest, latest, title))
        return anchors

    def _find(self, inventory: Inventory) -> list[Product]:
        products = []
        for found in inventory.found:
            for node, index in self.graph.initializers[found.matrix.name].uses():
                value = node.inputs[0]
                # Every use of a weight that was found is a product or a lookup; a lookup reads it as its first input.
                if index == 1 and value is not None:
                    products.append(Product(self._position[id(node)], found, value.name or ""))
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

    def _head(self, inventory: Inventory) -> Product | None:
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
        """Every few products a layer, and those that read the same value in one."""
        inner = len(self.products) - (self.head is not None)
        begins: list[tuple[int, str]] = []
        for index in range(inner):
            alone = index == 0 or self.products[index].value != self.products[index - 1].value
            if not begins or (alone and index - begins[-1][0] >= _PRODUCTS_A_LAYER):
                begins.append((index, f"products from {index}"))
        return [*begins, (inner, "head")] if self.head is not None else begins


@dataclass(frozen=True)
class _Span:
    """A value is there from the cut `begin` on, and node number `last` is the last to read it."""

    begin: int
    last: int
    counts: bool
    """It is computed, and of a floating-point type."""


class Life:
    """From which node to which node each value of a graph is needed."""

    def __init__(self, graph: ir.Graph, results: Sequence[ir.Value]) -> None:
        """Needed is what `results` depend on, and they themselves to the end."""
        nodes, needed = list(graph), nodes_for(results)
        self._begins = {id(value): index + 1 for index, node in enumerate(nodes) for value in node.outputs}
        self._begins |= {id(value): 0 for value in fed_inputs(graph)}
        self._spans: dict[str, _Span] = {}
        self._caches_until = -1
        for index, node in enumerate(nodes):
            if id(node) in needed:
                self._extend(reads(node), index)
        self._extend(results, len(nodes))

    def _extend(self, values: Iterable[ir.Value], until: int) -> None:
        for value in values:
            begin = self._begins.get(id(value))
            if begin == 0 and is_cache(value):
                self._caches_until = until
            elif begin is not None:
                is_float = value.dtype is not None and value.dtype.is_floating_point()
                self._spans[value.name or ""] = _Span(begin, until, begin > 0 and is_float)

    def names_alive(self, cut: int) -> tuple[str, ...]:
        """What is needed behind `cut` (nodes before it) and was there before."""
        names = [name for name, span in self._spans.items() if span.begin <= cut <= span.last]
        # The size of an empty cache follows from the ids.
        if cut <= self._caches_until and signature.INPUT_IDS not in names:
            names.append(signature.INPUT_IDS)
        return tuple(names)

    def floats_alive(self, cut: int) -> int:
        """How many float values a cut has to keep; many where there is none yet, so that a layer begins behind the lookups."""
        count = sum(span.counts for span in self._spans.values() if span.begin <= cut <= span.last)
        return count or len(self._spans) + 1


def take_apart(graph: ir.Graph, node: ir.Node) -> None:
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
