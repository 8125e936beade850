"""Makes one product of several that read the same input: Q, K, V of a layer; gate and up of a layer. Knows no head size.

One large product reads its input once and keeps the threads busy longer than three small ones. Where nothing lies
between the product and GroupQueryAttention, that node takes Q, K and V packed; else a Split follows the product.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from aiasst.convert.finish import tensors
from aiasst.convert.finish.anatomy import GQA, Product, layers
from aiasst.convert.finish.graph import Builder, add_weight, replace_uses, weight_tensor


def qkv(graph: ir.Graph) -> bool:
    """One product for Q, K and V of every layer that has three."""
    modified = False
    for layer in layers(graph):
        products = layer.inputs
        if len(products) != 3 or not _fusable(products):
            continue
        node = layer.attention
        straight = node.op_type == GQA and all(
            node.inputs[slot] is product.output for slot, product in enumerate(products)
        )
        if straight:
            packed = _fuse(graph, products, f"layers.{layer.index}.qkv_proj")
            node.replace_input_with(0, packed)
            node.replace_input_with(1, None)
            node.replace_input_with(2, None)
        else:
            _fuse_and_split(graph, products, f"layers.{layer.index}.qkv_proj")
        _remove(graph, products)
        modified = True
    return modified


def gate_up(graph: ir.Graph) -> bool:
    """One product for gate and up (in this order) of every layer that has both."""
    modified = False
    for layer in layers(graph):
        block = layer.feed_forward
        if block is None or block.gate is None or block.up is None or not _fusable((block.gate, block.up)):
            continue
        _fuse_and_split(graph, (block.gate, block.up), f"layers.{layer.index}.gate_up_proj")
        _remove(graph, (block.gate, block.up))
        modified = True
    return modified


def _fusable(products: Sequence[Product]) -> bool:
    same_input = all(product.input is products[0].input for product in products)
    return same_input and all(product.node.op_type == "MatMul" for product in products)


def _fuse(graph: ir.Graph, products: Sequence[Product], name: str) -> ir.Value:
    """The output of one product that has the columns of all `products`, one after the other."""
    weight = add_weight(
        graph, f"{name}.weight", tensors.concatenated([weight_tensor(p.weight) for p in products], axis=1)
    )  # fmt: skip
    build = Builder(graph, name)
    output = build.op("MatMul", [products[0].input, weight], name=name)
    if any(product.bias is not None for product in products):
        parts = [
            weight_tensor(p.bias) if p.bias is not None else tensors.zeros([p.columns], ir.DataType.FLOAT)
            for p in products
        ]
        bias = add_weight(graph, f"{name}.bias", tensors.concatenated(parts, axis=0))
        output = build.op("Add", [output, bias], name=f"{name}.bias_add")
    build.place_before(products[0].node)
    return output


def _fuse_and_split(graph: ir.Graph, products: Sequence[Product], name: str) -> None:
    fused = _fuse(graph, products, name)
    build = Builder(graph, name)
    sizes = build.constant([product.columns for product in products])
    build.op("Split", [fused, sizes], axis=-1, outputs=len(products), name=f"{name}.split")
    split = build.nodes[0]
    fused_by = fused.producer()
    if fused_by is None:
        raise AssertionError(f"{name} has no producer")
    build.place_after(fused_by)
    for product, part in zip(products, split.outputs, strict=True):
        replace_uses(product.output, part)


def _remove(graph: ir.Graph, products: Sequence[Product]) -> None:
    """Take the products that nobody reads any more out of the graph, or later passes would take them for parts of it."""
    for product in products:
        for node in (product.bias_node, product.node):
            if node is not None:
                graph.remove(node, safe=True)
