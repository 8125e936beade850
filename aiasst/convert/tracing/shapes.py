"""Tells the shapes of heads that a TorchScript trace leaves open. Knows how sizes are computed in a graph, no architecture.

TorchScript writes x.view(x.shape[0], x.shape[1], -1, 64) as a Reshape to a Concat of computed sizes and forgets what
they are. Where a computed size is that of the same axis of the input, it stays; the rest follows by counting.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from aiasst.convert.tracing.attention import MARKER, MARKER_DOMAIN, LayerAttention

_Size = int | ir.SymbolicDim
# The output has the shape of the first input.
_ALIKE = frozenset({"RMSNormalization", "LayerNormalization", "Identity"})


def tell(graph: ir.Graph, layers: Sequence[LayerAttention]) -> None:
    """Set the shape of every value whose shape can be told from shapes already known, in the order of the graph.

    Args:
        graph: Its constants are initializers.
        layers: What each marker (see `attention`) stands for, in order; empty where there is none.
    """
    waiting = iter(layers)
    for node in graph:
        sizes: Sequence[_Size] | None = None
        source = node.inputs[0].shape if node.inputs and node.inputs[0] is not None else None
        if node.domain == MARKER_DOMAIN and node.op_type == MARKER:
            layer = next(waiting)
            sizes = [ir.SymbolicDim(None), ir.SymbolicDim(None), layer.heads, layer.head_dim]
        elif source is None:
            continue
        elif node.op_type == "Reshape":
            sizes = _reshaped(source, _parts(node.inputs[1]))
        elif node.op_type == "Transpose":
            sizes = [source[axis] for axis in node.attributes["perm"].as_ints()]
        elif node.op_type in _ALIKE:
            sizes = list(source)
        if sizes is not None:
            node.outputs[0].shape = ir.Shape(sizes)


def _reshaped(source: ir.Shape, parts: Sequence[int | None] | None) -> list[_Size] | None:
    """`source` after a Reshape to `parts`, where None stands for a size that stays on its axis; None where it cannot be told."""
    if parts is None:
        return None
    if parts and parts[0] == -1 and len(parts) == len(source) and not any(parts[1:]):
        return list(source)  # every axis but the first stays, so the first does too
    stays = next((axis for axis, part in enumerate(parts) if part is not None), len(parts))
    rest, before = list(parts[stays:]), source[stays:]
    if None in rest or stays > len(source) or not all(isinstance(size, int) for size in before):
        return None
    known = [part for part in rest if part is not None and part > 0]
    if len(known) < len(rest) - 1:
        return None
    count = math.prod(size for size in before if isinstance(size, int))
    free = count // max(1, math.prod(known))
    return [*source[:stays], *(part if part is not None and part > 0 else free for part in rest)]


def _parts(target: ir.Value | None) -> list[int | None] | None:
    """The target of a Reshape: a number, or None for the size its axis has already; None altogether for another computation."""
    node = target.producer() if target is not None else None
    if target is None or node is None or node.op_type != "Concat":
        return None
    parts: list[int | None] = []
    for axis, value in enumerate(node.inputs):
        tensor = ir.convenience.get_const_tensor(value) if value is not None else None
        if tensor is not None and tensor.size == 1:
            parts.append(int(tensor.numpy().reshape(-1)[0]))
        elif value is not None and _axis_of_a_size(value) == axis:
            parts.append(None)
        else:
            return None
    return parts


def _axis_of_a_size(value: ir.Value) -> int | None:
    """i where `value` is Unsqueeze(Gather(Shape(x), i)): the size of axis i of something."""
    chain: list[ir.Node] = []
    current: ir.Value | None = value
    for kind in ("Unsqueeze", "Gather", "Shape"):
        node = current.producer() if current is not None else None
        if node is None or node.op_type != kind:
            return None
        chain.append(node)
        current = node.inputs[0]
    index = chain[1].inputs[1]
    tensor = ir.convenience.get_const_tensor(index) if index is not None else None
    return int(tensor.numpy().reshape(-1)[0]) if tensor is not None and tensor.size == 1 else None
