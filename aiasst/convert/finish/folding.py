"""Computes once, now, what the graph would compute from weights alone at every run (norm weight + 1, a transposed matrix).

Knows a handful of operators and evaluates them lazily; a tied embedding under a Transpose is left to `tied`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from aiasst.convert.finish import tensors
from aiasst.convert.finish.graph import add_weight, is_weight, replace_uses, weight_tensor

_ELEMENTWISE: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide,
}  # fmt: skip


def apply(graph: ir.Graph) -> bool:
    """Replace every foldable node by an initializer; whether there was one."""
    modified = False
    for node in tuple(graph):
        if not node.inputs or not all(is_weight(value) for value in node.inputs):
            continue
        folded = _fold(node)
        if folded is None:
            continue
        source = max((v for v in node.inputs if v is not None), key=lambda v: weight_tensor(v).size)
        # The folded weight takes its source's name where the source has no other reader (norm weight + 1 stays that norm's).
        replace_uses(node.outputs[0], add_weight(graph, source.name or node.outputs[0].name or "folded", folded))
        graph.remove(node, safe=True)
        modified = True
    return modified


def _fold(node: ir.Node) -> ir.TensorProtocol | None:
    values = [weight_tensor(value) for value in node.inputs if value is not None]
    if node.op_type == "Transpose":
        if node.inputs[0] is not None and any(reader.op_type == "Gather" for reader in node.inputs[0].consumers()):
            return None
        perm = node.attributes.get("perm")
        return tensors.transposed(values[0], perm.as_ints() if perm is not None else None)
    if node.op_type == "Concat":
        return tensors.concatenated(values, node.attributes["axis"].as_int())
    if node.op_type == "Cast":
        return tensors.cast(values[0], ir.DataType(node.attributes["to"].as_int()))
    if node.op_type in _ELEMENTWISE and values[0].dtype == ir.DataType.FLOAT:
        compute, (one, two) = _ELEMENTWISE[node.op_type], values
        shape = np.broadcast_shapes(tensors.shape_of(one), tensors.shape_of(two))
        return tensors.lazy(shape, one.dtype, lambda: compute(one.numpy(), two.numpy()))
    return None
