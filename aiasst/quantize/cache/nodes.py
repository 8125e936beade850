"""The caches of a graph: which attention nodes keep them, whether they can be int8, and the nodes that do. Knows no text.

GroupQueryAttention of ONNX Runtime takes an int8 cache with static scales (inputs 12 and 13): it rounds new keys, after rotary
embedding, and new values as it appends them, and computes with what was rounded, so that a prompt that is read in pieces gives
the same as one that is read at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from aiasst.errors import ArtifactError
from aiasst.quantize.cache.scales import Floats, Rotation
from aiasst.quantize.calibrate.parts import fed_inputs, is_cache

_ATTENTION = "GroupQueryAttention"
# Inputs of the node by position, and its outputs.
_PAST_KEY, _PAST_VALUE, _COS, _KEY_SCALE, _VALUE_SCALE = 3, 4, 7, 12, 13
_PRESENT_KEY, _PRESENT_VALUE = 1, 2
_FLOAT_BYTES = 4
_HINT = "leave out --cache int8 (or `cache: int8` in the recipe): the cache stays as it is"


@dataclass(frozen=True)
class CacheTensor:
    """Keys or values of one layer."""

    present: str
    """Name of the output: what was there and what is new, [batch, heads, tokens, head_dim]."""
    channels: int
    """Heads times the size of a head: each channel has a scale."""
    rotation: Rotation | None
    """Of keys that the node turns."""

    @property
    def scale_bytes(self) -> int:
        """What the scales take in the graph."""
        return _FLOAT_BYTES * self.channels


def find_caches(graph: ir.Graph) -> tuple[CacheTensor, ...]:
    """Every cache of `graph`, keys and values, in the order of its nodes.

    Raises:
        ArtifactError: there is none, or one that cannot be int8: another operator reads it, or it is no float32.
    """
    entering = [value for value in fed_inputs(graph) if _is_called_cache(value)]
    if not entering:
        raise ArtifactError("the graph has no cache that could be int8: it does not generate text", _HINT)
    for cache in entering:
        _refuse_unfit(cache)
    tensors: list[CacheTensor] = []
    for node in _attention_nodes(graph):
        key, value = _present(node, _PRESENT_KEY), _present(node, _PRESENT_VALUE)
        channels = _channels(node.inputs[_PAST_KEY]), _channels(node.inputs[_PAST_VALUE])
        tensors += [CacheTensor(key, channels[0], _rotation(node)), CacheTensor(value, channels[1], None)]
    return tuple(tensors)


def quantize_caches(graph: ir.Graph, scales: Mapping[str, Floats]) -> None:
    """Change `graph`, of which `find_caches` found the caches, in place: they become int8.

    `scales` float32 [1, heads, 1, head_dim] by the names of the outputs.
    """
    for number, node in enumerate(_attention_nodes(graph)):
        stem = node.name or f"attention.{number}"
        node.resize_inputs(max(len(node.inputs), _VALUE_SCALE + 1))
        for kind, past, present, place in (
            ("k", _PAST_KEY, _PRESENT_KEY, _KEY_SCALE),
            ("v", _PAST_VALUE, _PRESENT_VALUE, _VALUE_SCALE),
        ):
            array = np.ascontiguousarray(scales[_present(node, present)], np.float32)
            node.replace_input_with(place, _constant(graph, f"{stem}.{kind}_scale", array))
            node.attributes[f"{kind}_quant_type"] = ir.AttrString(f"{kind}_quant_type", "PER_CHANNEL")
            entering = node.inputs[past]
            assert entering is not None
            entering.type = node.outputs[present].type = ir.TensorType(ir.DataType.INT8)
        node.attributes["kv_cache_bit_width"] = ir.AttrInt64("kv_cache_bit_width", 8)


def _attention_nodes(graph: ir.Graph) -> list[ir.Node]:
    return [node for node in graph if node.op_type == _ATTENTION and _input(node, _PAST_KEY) is not None]


def _is_called_cache(value: ir.Value) -> bool:
    """As `is_cache`, of whatever type."""
    rank = 0 if value.shape is None else len(value.shape)
    return is_cache(value) or ("past" in (value.name or "") and rank >= 3)


def _refuse_unfit(value: ir.Value) -> None:
    """Raise ArtifactError where the cache input `value` cannot be int8."""
    if value.dtype != ir.DataType.FLOAT:
        kind = "of no known type" if value.dtype is None else value.dtype.name.lower()
        raise ArtifactError(f"the cache {value.name} is {kind}, and only one of float32 becomes int8", _HINT)
    uses = tuple(value.uses())
    odd = [node.op_type for node, index in uses if node.op_type != _ATTENTION or index not in (_PAST_KEY, _PAST_VALUE)]
    if odd or len(uses) != 1:
        reader = odd[0] if odd else f"{len(uses)} nodes"
        raise ArtifactError(
            f"the cache {value.name} is read by {reader}; only that of one {_ATTENTION} can be int8", _HINT
        )
    node, index = uses[0]
    present = node.outputs[index - _PAST_KEY + _PRESENT_KEY] if len(node.outputs) > _PRESENT_VALUE else None
    if not _channels(value):
        raise ArtifactError(f"the cache {value.name} does not tell how many heads it has, and of what size", _HINT)
    if present is None or not present.is_graph_output() or present.uses():
        raise ArtifactError(
            f"the cache {value.name} is read by other nodes once it has grown, so it stays float", _HINT
        )


def _present(node: ir.Node, index: int) -> str:
    name = node.outputs[index].name
    assert name is not None
    return name


def _channels(value: ir.Value | None) -> int:
    """Of a cache [batch, heads, tokens, head_dim]; 0 where its shape does not tell."""
    if value is None or value.shape is None or len(value.shape) != 4:
        return 0
    heads, head_dim = value.shape[1], value.shape[3]
    return heads * head_dim if isinstance(heads, int) and isinstance(head_dim, int) else 0


def _rotation(node: ir.Node) -> Rotation | None:
    """How the node turns its keys; None where it does not."""
    table = _input(node, _COS)
    if not _int(node, "do_rotary") or table is None or table.shape is None:
        return None
    half = table.shape[1]
    return Rotation(2 * half, bool(_int(node, "rotary_interleaved"))) if isinstance(half, int) else None


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _int(node: ir.Node, name: str) -> int:
    attribute = node.attributes.get(name)
    return 0 if attribute is None else attribute.as_int()


def _constant(graph: ir.Graph, name: str, array: Floats) -> ir.Value:
    tensor = ir.Tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
