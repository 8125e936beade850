"""Stores a tied embedding once: the head reads it transposed by FusedMatMul instead of owning a second copy. Knows no sizes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from aiasst.convert.finish.anatomy import head
from aiasst.convert.finish.graph import MICROSOFT, Builder, is_weight, replace_uses, weight_tensor
from aiasst.convert.finish.tensors import shape_of


def embedding(graph: ir.Graph) -> ir.Value | None:
    """The weight [vocabulary, hidden] that input_ids look up."""
    for reader in graph.inputs[0].consumers():
        table = reader.inputs[0]
        if reader.op_type == "Gather" and is_weight(table):
            return table
    return None


def apply(graph: ir.Graph, *, tied: bool) -> bool:
    """Make the head read the embedding where it is a transposed or (when `tied` says so) an equal matrix."""
    table, node = embedding(graph), head(graph)
    if table is None or node is None or node.op_type != "MatMul":
        return False
    weight = node.inputs[1]
    if weight is None or not (_is_transpose_of(weight, table) or (tied and _equal_transposed(weight, table))):
        return False
    build = Builder(graph, "lm_head")
    output = build.op(
        "FusedMatMul", [node.inputs[0], table], domain=MICROSOFT, transA=0, transB=1, alpha=1.0, name="lm_head"
    )  # fmt: skip
    build.place_before(node)
    replace_uses(node.outputs[0], output)
    return True


def _is_transpose_of(weight: ir.Value, table: ir.Value) -> bool:
    node = weight.producer()
    return node is not None and node.op_type == "Transpose" and node.inputs[0] is table


def _equal_transposed(weight: ir.Value, table: ir.Value) -> bool:
    if not is_weight(weight):
        return False
    one, two = weight_tensor(weight), weight_tensor(table)
    return shape_of(one) == tuple(reversed(shape_of(two))) and np.array_equal(one.numpy().T, two.numpy())
