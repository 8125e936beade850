"""An encoder's graph in forms that ONNX Runtime's CPU kernels compute faster, with the same numbers. Knows no weight and no format.

    SkipLayerNormalization(x, y)    → Sum(x, y), LayerNormalization    its own kernel is not vectorized: a fifth of the time
    Attention, mask of truth values → mask of numbers, made once       it would be turned into numbers by every layer

ONNX Runtime fuses an Add with the norm behind it as it opens a graph, back to the slow kernel; a Sum it leaves alone. In a batch of
short texts the norms took as long as half of the products of w8a8. benchmarks/encoders.py measures what comes of it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir import convenience

from aiasst.quantize.emit import MICROSOFT, Emitter

# LayerNormalization is of this opset; a mask as the fourth input of the standard's Attention came later anyway.
_FIRST_OPSET = 17
_EPSILON = 1e-5
_MASK = 3
# Where a query may not look. Half of the least number: a score added to it is still one.
_FORBIDDEN = np.finfo(np.float32).min / 2
# Operators whose result is of the type of their first input, and such as give truth values.
_PASSING = frozenset({"Expand", "Unsqueeze", "Squeeze", "Reshape", "Transpose", "Slice", "Identity", "Concat"})
_DECIDING = frozenset({"And", "Or", "Not", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})


def rephrase(graph: ir.Graph) -> None:
    """Change `graph` in place; a graph of an older opset stays as it is."""
    if graph.opset_imports.get("", 1) < _FIRST_OPSET:
        return
    emit = Emitter(graph)
    for node in list(graph):
        if node.op_type == "SkipLayerNormalization" and node.domain == MICROSOFT:
            _split_norm(emit, graph, node)
        elif node.op_type == "Attention" and node.domain in ("", "ai.onnx"):
            _number_mask(emit, node)


def _split_norm(emit: Emitter, graph: ir.Graph, node: ir.Node) -> None:
    """A fused addition and norm → a Sum and a norm; left alone where somebody reads its mean or deviation."""
    inputs = [*node.inputs, *[None] * (5 - len(node.inputs))]
    shortcut, added, gamma, beta, bias = inputs[:5]
    outputs = [*node.outputs, *[None] * (4 - len(node.outputs))]
    if any(output is not None and _is_read(output) for output in outputs[1:3]):
        return
    name = node.name or "norm"
    emit.release(node)
    addends = [value for value in (shortcut, added, bias) if value is not None]
    total = emit.op("Sum", addends, name=f"{name}.sum")
    epsilon = node.attributes.get("epsilon")
    settings = {"axis": -1, "epsilon": _EPSILON if epsilon is None else epsilon.as_float()}
    normed = emit.op("LayerNormalization", [total, gamma, *([] if beta is None else [beta])], settings, name=name)
    emit.place_before(node)
    _take_place(normed, node.outputs[0])
    if outputs[3] is not None and _is_read(outputs[3]):
        _take_place(total, outputs[3])
    graph.remove(node, safe=True)


def _is_read(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _take_place(new: ir.Value, old: ir.Value) -> None:
    """`new` for `old` wherever that is read, under its name."""
    new.shape, new.type = old.shape, old.type
    convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    name, old.name = old.name, None
    new.name = name


def _number_mask(emit: Emitter, node: ir.Node) -> None:
    """Zero where a query may look, a very negative number where it may not: what all layers share is made once."""
    mask = node.inputs[_MASK] if len(node.inputs) > _MASK else None
    if mask is None or not _holds_truth_values(mask):
        return
    allowed, forbidden = emit.constant(np.array(0, np.float32)), emit.constant(np.array(_FORBIDDEN, np.float32))
    numbers = emit.shared(
        "mask", mask, lambda: emit.op("Where", [mask, allowed, forbidden], name=f"{mask.name}.numbers")
    )
    node.replace_input_with(_MASK, numbers)


def _holds_truth_values(value: ir.Value) -> bool:
    """Whether a mask is of truth values, as far as the nodes before it tell: graphs carry few types."""
    node = value.producer()
    if value.dtype is not None or node is None:
        return value.dtype == ir.DataType.BOOL
    if node.op_type == "Cast":
        return node.attributes["to"].as_int() == ir.DataType.BOOL
    first = node.inputs[0] if node.inputs else None
    return node.op_type in _DECIDING or (node.op_type in _PASSING and first is not None and _holds_truth_values(first))
