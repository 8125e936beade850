"""Finds the parts of a transformer by how they are wired, not by what an exporter called them. Changes nothing.

Anchors are the attention nodes. The products into them are Q, K and V; the first product after them is the output
projection; what then leads to the next attention is the feed-forward block; what leads to the logits is the head.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from aiasst.convert.finish.graph import (
    ancestors,
    back_through,
    forward_through,
    is_weight,
    single_reader,
    weight_tensor,
)
from aiasst.convert.finish.tensors import shape_of

GQA = "GroupQueryAttention"
ATTENTION_OPS = frozenset({GQA, "Attention", "MultiHeadAttention"})
NORM_OPS = frozenset(
    {"RMSNormalization", "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization",
     "LayerNormalization", "SkipLayerNormalization"}
)  # fmt: skip
PRODUCT_OPS = frozenset({"MatMul", "FusedMatMul"})

# What may lie between a product and the attention it feeds, or between attention and its output projection.
_SHAPING = frozenset(
    {"Add", "Mul", "Reshape", "Transpose", "Split", "Pad", "Gather", "GatherND", "Slice", "Cast", "Identity", "Squeeze",
     "Unsqueeze", "Concat", "RotaryEmbedding", "RMSNormalization", "SimplifiedLayerNormalization", "LayerNormalization"}
)  # fmt: skip
# What may lie between the head's product and the logits: scaling, soft-capping, a bias, a cast.
_AFTER_HEAD = frozenset({"Add", "Mul", "Div", "Tanh", "Cast", "Identity"})


@dataclass(frozen=True)
class Product:
    """A product with a constant matrix, and the Add of its bias where there is one."""

    node: ir.Node
    weight: ir.Value
    """[K, N] (or [N, K] for a FusedMatMul with transB)."""
    bias_node: ir.Node | None = None
    bias: ir.Value | None = None

    @property
    def input(self) -> ir.Value:
        """What is multiplied."""
        value = self.node.inputs[0]
        if value is None:
            raise ValueError(f"{self.node.name} has no input")
        return value

    @property
    def output(self) -> ir.Value:
        """The result, bias included."""
        return (self.bias_node or self.node).outputs[0]

    @property
    def columns(self) -> int:
        """N."""
        return shape_of(weight_tensor(self.weight))[-1]


@dataclass(frozen=True)
class FeedForward:
    """The feed-forward block of one layer; `gate` and `up` are None where both are one product (`gate_up`)."""

    gate: Product | None
    up: Product | None
    gate_up: Product | None
    down: Product


@dataclass(frozen=True)
class Layer:
    """One layer: its attention and the products around it."""

    index: int
    attention: ir.Node
    inputs: tuple[Product, ...]
    """(qkv,) where packed, else (q, k, v); empty where they were not recognised."""
    output: Product | None
    feed_forward: FeedForward | None
    others: tuple[Product, ...]
    """Products of this layer that fit no known block."""


def as_product(node: ir.Node) -> Product | None:
    """`node` as a product with a constant matrix, or None."""
    if node.op_type not in PRODUCT_OPS or not is_weight(node.inputs[1]):
        return None
    weight = node.inputs[1]
    if weight is None or weight.const_value is None or len(weight.const_value.shape) != 2:
        return None
    reader = single_reader(node.outputs[0])
    if reader is not None and reader.op_type == "Add":
        bias = next((value for value in reader.inputs if value is not node.outputs[0]), None)
        if bias is not None and is_weight(bias) and len(weight_tensor(bias).shape) == 1:
            return Product(node, weight, reader, bias)
    return Product(node, weight)


def attentions(graph: ir.Graph) -> list[ir.Node]:
    """The attention nodes in the order of the graph, which is the order of the layers."""
    return [node for node in graph if node.op_type in ATTENTION_OPS]


def head(graph: ir.Graph) -> ir.Node | None:
    """The product (with a constant matrix, or with a transposed one) that makes the logits of a decoder."""
    logits = graph.outputs[0]
    found = back_through(logits, _AFTER_HEAD, lambda node: node.op_type in PRODUCT_OPS)
    return next(found, None)


def _inputs(attention: ir.Node) -> tuple[Product, ...]:
    products: list[Product] = []
    for value in attention.inputs[:3]:
        node = next(back_through(value, _SHAPING, lambda node: as_product(node) is not None), None)
        product = as_product(node) if node is not None else None
        if product is not None and all(product.node is not other.node for other in products):
            products.append(product)
    return tuple(products)


def _output(attention: ir.Node) -> Product | None:
    node = next(
        forward_through(attention.outputs[0], _SHAPING, lambda node: as_product(node) is not None), None
    )  # fmt: skip
    return as_product(node) if node is not None else None


def _gate_first(one: Product, two: Product) -> tuple[Product, Product]:
    """(gate, up): `up` reaches the element-wise product as it is, `gate` through its activation."""
    for gate, up in ((one, two), (two, one)):
        if any(reader.op_type == "Mul" for reader in up.output.consumers()):
            for reader in up.output.consumers():
                other = next((value for value in reader.inputs if value is not up.output), None)
                if other is not None and gate.node in ancestors([other]) and other is not gate.output:
                    return gate, up
    return one, two


def _feed_forward(products: list[Product]) -> tuple[FeedForward | None, list[Product]]:
    """The block these products (in graph order) form, and those left over."""
    nodes = {product.node for product in products}
    first = [p for p in products if not (ancestors([p.input]) & nodes)]
    rest = [p for p in products if all(p.node is not other.node for other in first)]
    down = next(
        (p for p in rest if all(one.node in ancestors([p.input]) for one in first)), None
    )  # fmt: skip
    if down is None or not 1 <= len(first) <= 2:
        return None, products
    left = [p for p in rest if p.node is not down.node]
    if len(first) == 2:
        gate, up = _gate_first(*first)
        return FeedForward(gate, up, None, down), left
    only = first[0]
    if any(reader.op_type in ("Split", "Slice") for reader in only.output.consumers()):
        return FeedForward(None, None, only, down), left
    return FeedForward(None, only, None, down), left


def layers(graph: ir.Graph) -> list[Layer]:
    """The layers of a decoder or encoder; empty where there is no attention node."""
    anchors = attentions(graph)
    inputs = [_inputs(anchor) for anchor in anchors]
    outputs = [_output(anchor) for anchor in anchors]
    taken = {product.node for group in inputs for product in group}
    taken |= {product.node for product in outputs if product is not None}
    top = head(graph)
    if top is not None:
        taken.add(top)
    free = [p for p in (as_product(node) for node in graph) if p is not None and p.node not in taken]
    grouped = _by_layer(anchors, free)
    found: list[Layer] = []
    for index, anchor in enumerate(anchors):
        block, left = _feed_forward(grouped[index])
        found.append(Layer(index, anchor, inputs[index], outputs[index], block, tuple(left)))
    return found


def _by_layer(anchors: list[ir.Node], products: list[Product]) -> list[list[Product]]:
    """A product belongs to the layer before the first attention that depends on it; to the last where none does."""
    reach = [ancestors(anchor.inputs) for anchor in anchors]
    groups: list[list[Product]] = [[] for _ in anchors]
    for product in products:
        index = next((i for i, nodes in enumerate(reach) if product.node in nodes), len(anchors)) - 1
        if index >= 0:
            groups[index].append(product)
    return groups
