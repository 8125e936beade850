"""Computes logits for the last token of each row only, unless `all_logits` is fed. Knows the mask's lengths, no weights.

Nothing after the last layer's attention mixes rows, so the choice of rows moves up to there: the last layer's output
projection and feed-forward, the final norm and the head then run on one token of a prompt instead of all. Without an
If node: the rows are first + (0 … count - 1), with first = 0, count = sequence when all are asked for, and
first = min(length, sequence) - 1, count = 1 when not.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from aiasst.artifacts import signature
from aiasst.convert.finish.anatomy import GQA, attentions, head
from aiasst.convert.finish.graph import Builder, ancestors, descendants, is_weight
from aiasst.convert.finish.positions import Lengths
from aiasst.errors import ExportError

# Operators that treat every token of [batch, sequence, ...] by itself.
_ROW_WISE = frozenset(
    {"MatMul", "FusedMatMul", "Add", "Sub", "Mul", "Div", "Sigmoid", "Tanh", "Gelu", "FastGelu", "QuickGelu", "BiasGelu",
     "Relu", "Silu", "Swish", "Erf", "Pow", "Sqrt", "Reciprocal", "Split", "Cast", "RMSNormalization",
     "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization", "LayerNormalization", "SkipLayerNormalization"}
)  # fmt: skip


def apply(graph: ir.Graph, lengths: Lengths) -> bool:
    """Insert the choice of rows; the graph gains the overridable initializer `all_logits`."""
    last = [node for node in attentions(graph) if node.op_type == GQA][-1]
    top = head(graph)
    if top is None:
        raise ExportError("the exported graph has no head that makes the logits", "try another exporter")
    below = descendants(last.outputs[0]) & (ancestors(top.outputs) | {top})
    if not all(node.op_type in _ROW_WISE and _reads_rows_only(node, below) for node in below):
        below = {top}
    rows = _rows(graph, lengths)
    _gather_frontier(graph, below, rows)
    logits = graph.outputs[0]
    vocabulary = logits.shape[-1] if logits.shape is not None else None
    logits.shape = ir.Shape(["batch", "logits_rows", vocabulary])
    return True


def _reads_rows_only(node: ir.Node, below: set[ir.Node]) -> bool:
    """Whether every input is a weight or a value of rows: a node of `below`, or the stream computed before."""
    if node.op_type in ("MatMul", "FusedMatMul"):
        return is_weight(node.inputs[1]) or _is_transposed_weight(node.inputs[1])
    return all(
        value is None or is_weight(value) or value.producer() is not None for value in node.inputs
    )  # fmt: skip


def _is_transposed_weight(value: ir.Value | None) -> bool:
    node = value.producer() if value is not None else None
    return node is not None and node.op_type == "Transpose" and is_weight(node.inputs[0])


def _rows(graph: ir.Graph, lengths: Lengths) -> ir.Value:
    """int64 [batch, count, 1]: the rows of each sequence that get logits."""
    wanted = ir.Value(name=signature.ALL_LOGITS, shape=ir.Shape([]), type=ir.TensorType(ir.DataType.BOOL))
    wanted.const_value = ir.Tensor(np.array(False), name=signature.ALL_LOGITS)
    graph.inputs.append(wanted)
    graph.register_initializer(wanted)
    build = Builder(graph, "rows")
    zero, one, axis, axes = build.constant(0), build.constant(1), build.constant([1]), build.constant([2])
    last = build.op("Sub", [build.op("Min", [lengths.rows, lengths.sequence]), one])
    first = build.op("Where", [wanted, zero, last])
    first = build.op("Unsqueeze", [first, axis])
    count = build.op("Where", [wanted, lengths.sequence, one])
    steps = build.op("Range", [zero, count, one])
    rows = build.op("Unsqueeze", [build.op("Add", [first, steps]), axes], name="rows/chosen")
    producer = lengths.sequence.producer()
    if producer is None:
        raise AssertionError("the lengths are not in the graph")
    build.place_after(producer)
    return rows


def _gather_frontier(graph: ir.Graph, below: set[ir.Node], rows: ir.Value) -> None:
    """Let the nodes of `below` read the chosen rows of every value that comes from outside."""
    gathered: dict[ir.Value, ir.Value] = {}
    for node in tuple(graph):
        if node not in below:
            continue
        for index, value in enumerate(node.inputs):
            if value is None or is_weight(value) or value.producer() in below or _is_transposed_weight(value):
                continue
            if value not in gathered:
                build = Builder(graph, "rows")
                gathered[value] = build.op("GatherND", [value, rows], batch_dims=1, name=f"rows/of_{len(gathered)}")
                build.place_before(node)
            node.replace_input_with(index, gathered[value])
