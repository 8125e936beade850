"""Gives the graph the inputs and outputs of `artifacts.signature`, whatever the exporter called them. Knows no weights."""

from __future__ import annotations

import onnx_ir as ir

from aiasst.artifacts import signature
from aiasst.convert.finish.anatomy import GQA, attentions
from aiasst.convert.finish.graph import replace_uses
from aiasst.errors import ExportError

BATCH, SEQUENCE, TOTAL = "batch", "sequence", "total_sequence"
PAST_CAPACITY, PRESENT_CAPACITY = "past_capacity", "present_capacity"

_HINT = "try another exporter with --exporter"


def decoder(graph: ir.Graph) -> bool:
    """Name, type and order the inputs and outputs of a causal decoder. `all_logits` is `last_token`'s to add."""
    inputs = {value.name: value for value in graph.inputs}
    outputs = {value.name: value for value in graph.outputs}
    logits = outputs.get(signature.LOGITS, graph.outputs[0])
    ids = _need(inputs.get(signature.INPUT_IDS), signature.INPUT_IDS)
    mask = inputs.get(signature.ATTENTION_MASK)
    if mask is None:
        mask = ir.Value(name=signature.ATTENTION_MASK)
    _shape_as(ids, ir.DataType.INT64, [BATCH, SEQUENCE])
    _shape_as(mask, ir.DataType.INT64, [BATCH, TOTAL])
    caches_in, caches_out = _caches(graph)
    others = [v for v in graph.inputs if v not in (ids, mask, *caches_in) and v.name != "position_ids"]
    if others:
        raise ExportError(f"the exported graph has an input nobody would feed: {others[0].name}", _HINT)
    positions = [v for v in graph.inputs if v.name == "position_ids"]
    # Position ids stay until `positions` has put its own in their place.
    graph.inputs[:] = [ids, mask, *positions, *caches_in]
    graph.outputs[:] = [logits, *caches_out]
    logits.name = signature.LOGITS
    logits.dtype = ir.DataType.FLOAT
    return True


def encoder(graph: ir.Graph) -> bool:
    """Name, type and order the inputs and outputs of an encoder."""
    wanted = (signature.INPUT_IDS, signature.ATTENTION_MASK, signature.TOKEN_TYPE_IDS)
    inputs = {value.name: value for value in graph.inputs}
    _need(inputs.get(signature.INPUT_IDS), signature.INPUT_IDS)
    for value in graph.inputs:
        if value.name not in wanted:
            raise ExportError(f"the exported graph has an input nobody would feed: {value.name}", _HINT)
        _shape_as(value, ir.DataType.INT64, [BATCH, SEQUENCE])
    output = next((v for v in graph.outputs if v.name == signature.LOGITS), graph.outputs[0])
    if output.name != signature.LOGITS:
        output.name = signature.LAST_HIDDEN_STATE
    if output.shape is not None and len(output.shape) >= 2:
        rest = [SEQUENCE] if len(output.shape) == 3 else []
        output.shape = ir.Shape([BATCH, *rest, output.shape[-1]])
    graph.inputs[:] = [inputs[name] for name in wanted if name in inputs]
    graph.outputs[:] = [output]
    return True


def _caches(graph: ir.Graph) -> tuple[list[ir.Value], list[ir.Value]]:
    """The cache inputs and outputs, key then value, layer by layer, named by the signature."""
    past: list[ir.Value] = []
    present: list[ir.Value] = []
    nodes = [node for node in attentions(graph) if node.op_type == GQA]
    if not nodes:
        raise ExportError("the exported graph has no GroupQueryAttention", _HINT)
    for layer, node in enumerate(nodes):
        heads = node.attributes["kv_num_heads"].as_int()
        for slot, old, new in (
            (0, signature.past_key(layer), signature.present_key(layer)),
            (1, signature.past_value(layer), signature.present_value(layer)),
        ):
            source = _need(node.inputs[3 + slot], old)
            if not source.is_graph_input():
                raise ExportError(f"the cache of layer {layer} does not come straight from an input", _HINT)
            target = _straight_output(node.outputs[1 + slot])
            size = source.shape[-1] if source.shape is not None else None
            source.name, target.name = old, new
            _shape_as(source, ir.DataType.FLOAT, [BATCH, heads, PAST_CAPACITY, size])
            _shape_as(target, ir.DataType.FLOAT, [BATCH, heads, PRESENT_CAPACITY, size])
            past.append(source)
            present.append(target)
    return past, present


def _straight_output(value: ir.Value) -> ir.Value:
    """`value` itself as the graph output: Identity nodes between it and the output are stepped over."""
    for reader in tuple(value.consumers()):
        if reader.op_type == "Identity" and reader.outputs[0].is_graph_output():
            replace_uses(reader.outputs[0], value)
    return value


def _need(value: ir.Value | None, name: str) -> ir.Value:
    if value is None:
        raise ExportError(f"the exported graph has no input for {name}", _HINT)
    return value


def _shape_as(value: ir.Value, dtype: ir.DataType, shape: list[int | str | ir.SymbolicDim | None]) -> None:
    value.dtype = dtype
    value.shape = ir.Shape(shape)
