"""Derives lengths and positions once from the attention mask, for all layers. Knows the mask's contract, no weights.

A row's sum is its length; new tokens start at max(length - sequence, 0). GroupQueryAttention wants length - 1
(`seqlens_k`) and the width of the mask (`total_sequence_length`), both int32.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from aiasst.artifacts import signature
from aiasst.convert.finish.anatomy import GQA
from aiasst.convert.finish.graph import Builder, replace_uses


@dataclass(frozen=True)
class Lengths:
    """Values that later passes build upon."""

    rows: ir.Value
    """int64 [batch]: tokens of each row, past and new."""
    sequence: ir.Value
    """int64 []: new tokens of each row."""


def apply(graph: ir.Graph) -> Lengths:
    """Let every GroupQueryAttention, and position_ids where the exporter has them, read lengths derived here."""
    ids, mask = graph.inputs[0], graph.inputs[1]
    build = Builder(graph, "lengths")
    axis = build.constant([1])
    rows = build.op("ReduceSum", [mask, axis], keepdims=0, name="lengths/rows")
    one, position = build.constant(1), build.constant(1)
    seqlens = build.op("Cast", [build.op("Sub", [rows, one])], to=ir.DataType.INT32, name="lengths/seqlens_k")
    total = build.op("Gather", [build.op("Shape", [mask]), position])
    total = build.op("Cast", [total], to=ir.DataType.INT32, name="lengths/total")
    sequence = build.op("Gather", [build.op("Shape", [ids]), position], name="lengths/sequence")
    positions = [value for value in graph.inputs if value.name == "position_ids"]
    new_positions = _position_ids(build, rows, sequence) if positions else None
    build.place_first()
    for node in graph:
        if node.op_type == GQA:
            node.replace_input_with(5, seqlens)
            node.replace_input_with(6, total)
    for value in positions:
        if new_positions is not None:
            replace_uses(value, new_positions)
        graph.inputs.remove(value)
    if not mask.uses():
        raise AssertionError(f"{signature.ATTENTION_MASK} is not read")
    return Lengths(rows, sequence)


def _position_ids(build: Builder, rows: ir.Value, sequence: ir.Value) -> ir.Value:
    """int64 [batch, sequence]."""
    zero, one, axis = build.constant(0), build.constant(1), build.constant([1])
    start = build.op("Max", [build.op("Sub", [rows, sequence]), zero])
    start = build.op("Unsqueeze", [start, axis])
    steps = build.op("Range", [zero, sequence, one])
    return build.op("Add", [start, steps], name="lengths/position_ids")
