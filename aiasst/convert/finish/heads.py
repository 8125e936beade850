"""Widens heads to a size GroupQueryAttention takes: a multiple of 16, with rotary halves that are multiples of 8.

The operator rotates the first 2r entries of a head (r = columns of the cos cache): entry j < r with entry r + j. So a
narrow rotary half is widened in place, [r true, gap, r true, gap, rest, gap], with cos 1 and sin 0 for the gaps. Gaps
hold zeros in Q, K and V, so every score and every sum stays what it was; `scale` keeps the true head size. Norms of Q
and K see the true entries only: the widening happens after them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from aiasst.convert.finish import tensors
from aiasst.convert.finish.anatomy import GQA, Layer, layers
from aiasst.convert.finish.graph import Builder, add_weight, single_reader, weight_tensor
from aiasst.convert.finish.tensors import shape_of
from aiasst.errors import ExportError


@dataclass(frozen=True)
class HeadLayout:
    """Where the entries of a head lie in the widened head."""

    width: int
    places: np.ndarray
    """int64 [true head size]."""
    rotary_half: int
    """Columns of the widened cos cache; 0 without rotary embedding."""


def layout_for(head_dim: int, rotary_half: int, *, interleaved: bool = False) -> HeadLayout:
    """The smallest layout that GroupQueryAttention takes for a head of `head_dim` whose first 2 x `rotary_half` rotate."""
    half = -(-rotary_half // 8) * 8
    rest = head_dim - 2 * rotary_half
    width = -(-(2 * half + rest) // 16) * 16
    rotated = np.arange(2 * rotary_half)
    if not interleaved:
        rotated = np.concatenate([np.arange(rotary_half), half + np.arange(rotary_half)])
    places = np.concatenate([rotated, 2 * half + np.arange(rest)])
    return HeadLayout(width, places.astype(np.int64), half)


def apply(graph: ir.Graph) -> bool:
    """Widen the heads of every layer that needs it; whether one did."""
    modified = False
    widened: dict[str, ir.Value] = {}
    for layer in layers(graph):
        node = layer.attention
        if node.op_type != GQA:
            continue
        cos = node.inputs[7] if len(node.inputs) > 7 else None
        rotary_half = shape_of(weight_tensor(cos))[-1] if cos is not None and cos.const_value is not None else 0
        head_dim = _head_dim(layer)
        interleaved = bool(_int(node, "rotary_interleaved"))
        layout = layout_for(head_dim, rotary_half, interleaved=interleaved)
        if layout.width == head_dim and layout.rotary_half == rotary_half:
            continue
        if "scale" not in node.attributes:
            node.attributes["scale"] = ir.AttrFloat32("scale", 1 / math.sqrt(head_dim))
        _widen_inputs(graph, layer, layout, head_dim)
        _widen_output(graph, layer, layout)
        _widen_rotary(graph, node, layout, widened)
        _widen_caches(node, layout.width)
        modified = True
    return modified


def _int(node: ir.Node, name: str) -> int:
    attribute = node.attributes.get(name)
    return attribute.as_int() if attribute is not None else 0


def _counts(node: ir.Node) -> tuple[int, int]:
    return node.attributes["num_heads"].as_int(), node.attributes["kv_num_heads"].as_int()


def _head_dim(layer: Layer) -> int:
    """The head size, from the columns of the products; V's own where they are three."""
    heads, kv_heads = _counts(layer.attention)
    if len(layer.inputs) == 1:
        return layer.inputs[0].columns // (heads + 2 * kv_heads)
    cache = layer.attention.inputs[3]
    size = cache.shape[-1] if cache is not None and cache.shape is not None else None
    if not isinstance(size, int):
        raise ExportError(
            f"the head size of layer {layer.index} cannot be told from the graph", "try another exporter"
        )  # fmt: skip
    return size


def _widen_inputs(graph: ir.Graph, layer: Layer, layout: HeadLayout, head_dim: int) -> None:
    """Packed: columns of the weight. Split: every one of Q, K, V just before the node (norms lie before that)."""
    node = layer.attention
    heads, kv_heads = _counts(node)
    if len(layer.inputs) == 1 and node.inputs[0] is layer.inputs[0].output:
        product, count = layer.inputs[0], heads + 2 * kv_heads
        weight = tensors.spread(weight_tensor(product.weight), 1, count, layout.places, layout.width)
        product.node.replace_input_with(1, add_weight(graph, product.weight.name or "qkv", weight))
        if product.bias is not None and product.bias_node is not None:
            bias = tensors.spread(weight_tensor(product.bias), 0, count, layout.places, layout.width)
            _replace_input(product.bias_node, product.bias, add_weight(graph, product.bias.name or "bias", bias))
        return
    for slot, count in ((0, heads), (1, kv_heads), (2, kv_heads)):
        value = node.inputs[slot]
        if value is None:
            raise ExportError(f"Q, K, V of layer {layer.index} are packed in an unknown way", "try another exporter")
        node.replace_input_with(slot, _spread_node(graph, node, value, count, head_dim, layout))


def _spread_node(
    graph: ir.Graph, before: ir.Node, value: ir.Value, heads: int, head_dim: int, layout: HeadLayout
) -> ir.Value:
    """`value` [batch, sequence, heads x head_dim] with its heads widened, by nodes: one zero at a head's end fills all gaps."""
    build = Builder(graph, f"{before.name}/widen")
    apart = build.op("Reshape", [value, build.constant([0, 0, heads, head_dim])])
    ended = build.op("Pad", [apart, build.constant([0, 0, 0, 0, 0, 0, 0, 1])])
    order = np.full(layout.width, head_dim)
    order[layout.places] = np.arange(head_dim)
    wide = build.op("Gather", [ended, build.constant(order)], axis=-1)
    joined = build.op("Reshape", [wide, build.constant([0, 0, heads * layout.width])])
    build.place_before(before)
    return joined


def _widen_output(graph: ir.Graph, layer: Layer, layout: HeadLayout) -> None:
    """Rows of the output projection where it reads the node straight; else the true entries are gathered back."""
    node, product = layer.attention, layer.output
    heads, _ = _counts(node)
    # V is widened like Q and K, so the output has the same places.
    output = node.outputs[0]
    if product is not None and product.input is output and single_reader(output) is product.node:
        weight = tensors.spread(weight_tensor(product.weight), 0, heads, layout.places, layout.width)
        product.node.replace_input_with(1, add_weight(graph, product.weight.name or "o_proj", weight))
        return
    readers = tuple(output.uses())
    build = Builder(graph, f"{node.name}/narrow")
    apart = build.op("Reshape", [output, build.constant([0, 0, heads, layout.width])])
    true = build.op("Gather", [apart, build.constant(layout.places)], axis=-1)
    joined = build.op("Reshape", [true, build.constant([0, 0, heads * len(layout.places)])])
    build.place_after(node)
    for use in readers:
        use.node.replace_input_with(use.idx, joined)


def _widen_rotary(graph: ir.Graph, node: ir.Node, layout: HeadLayout, widened: dict[str, ir.Value]) -> None:
    if not layout.rotary_half:
        return
    for slot, fill in ((7, 1.0), (8, 0.0)):
        cache = node.inputs[slot]
        if cache is None or cache.name is None:
            raise ExportError("a rotary cache is missing", "try another exporter with --exporter")
        if cache.name not in widened:
            tensor = tensors.widened(weight_tensor(cache), 1, layout.rotary_half, fill)
            widened[cache.name] = add_weight(graph, cache.name, tensor)
        node.replace_input_with(slot, widened[cache.name])


def _widen_caches(node: ir.Node, width: int) -> None:
    for value in (node.inputs[3], node.inputs[4], node.outputs[1], node.outputs[2]):
        if value is not None and value.shape is not None:
            value.shape = ir.Shape([*value.shape[:-1], width])


def _replace_input(node: ir.Node, old: ir.Value, new: ir.Value) -> None:
    for index, value in enumerate(node.inputs):
        if value is old:
            node.replace_input_with(index, new)
