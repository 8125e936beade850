"""Small steps on a graph that every pass needs: making, finding and replacing. Knows no architecture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from aiasst.convert.finish.tensors import shape_of

MICROSOFT = "com.microsoft"


def is_weight(value: ir.Value | None) -> bool:
    """Whether `value` is an initializer nobody can override."""
    return value is not None and value.is_initializer() and not value.is_graph_input()


def weight_tensor(value: ir.Value) -> ir.TensorProtocol:
    """The tensor of an initializer."""
    tensor = value.const_value
    if tensor is None:
        raise ValueError(f"initializer {value.name} has no value")
    return tensor


def add_weight(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Register `tensor` as the initializer `name` (made unique where it is taken)."""
    unique, count = name, 1
    while unique in graph.initializers:
        count += 1
        unique = f"{name}#{count}"
    tensor.name = unique
    value = ir.Value(
        name=unique, shape=ir.Shape(list(shape_of(tensor))), type=ir.TensorType(tensor.dtype), const_value=tensor
    )  # fmt: skip
    graph.register_initializer(value)
    return value


def add_constant(graph: ir.Graph, content: Any, dtype: ir.DataType = ir.DataType.INT64) -> ir.Value:
    """A small constant as an initializer; equal constants share one, since the name says the content."""
    array = np.asarray(content, dtype=dtype.numpy())
    words = "x".join(str(item) for item in array.reshape(-1).tolist()) or "empty"
    name = f"const.{dtype.name.lower()}.{'scalar' if array.ndim == 0 else 'list'}.{words}"
    if len(name) < 80 and name in graph.initializers:
        return graph.initializers[name]
    return add_weight(graph, name[:80], ir.Tensor(array, dtype=dtype))


class Builder:
    """Makes nodes one after the other and puts them into the graph before (or after) a node when asked to."""

    def __init__(self, graph: ir.Graph, prefix: str) -> None:
        self.graph = graph
        self.prefix = prefix
        self.nodes: list[ir.Node] = []

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        *,
        name: str | None = None,
        domain: str = "",
        outputs: int = 1,
        **attributes: Any,
    ) -> ir.Value:
        """Append a node; its first output. `name` defaults to prefix/op_type and is that of its outputs too."""
        node = ir.node(
            op_type, inputs, attributes, domain=domain, num_outputs=outputs, name=name or f"{self.prefix}/{op_type}"
        )
        for index, output in enumerate(node.outputs):
            output.name = f"{node.name}:{len(self.nodes)}:{index}" if name is None else f"{node.name}:{index}"
        self.nodes.append(node)
        return node.outputs[0]

    def constant(self, content: Any, dtype: ir.DataType = ir.DataType.INT64) -> ir.Value:
        """A small constant."""
        return add_constant(self.graph, content, dtype)

    def place_before(self, node: ir.Node) -> None:
        """Put the nodes made so far into the graph, before `node`."""
        self.graph.insert_before(node, self.nodes)
        self.nodes = []

    def place_first(self) -> None:
        """Put the nodes made so far at the beginning of the graph."""
        first = next(iter(self.graph))
        self.place_before(first)

    def place_after(self, node: ir.Node) -> None:
        """Put the nodes made so far into the graph, after `node`."""
        self.graph.insert_after(node, self.nodes)
        self.nodes = []


def replace_uses(old: ir.Value, new: ir.Value, *, keep: Iterable[ir.Node] = ()) -> None:
    """Let every reader of `old` read `new`, but the nodes in `keep`; a graph output follows and keeps its name."""
    kept = set(keep)
    for use in tuple(old.uses()):
        if use.node not in kept:
            use.node.replace_input_with(use.idx, new)
    graph = new.graph
    if old.is_graph_output() and graph is not None:
        for index, output in enumerate(graph.outputs):
            if output is old:
                name = old.name
                graph.outputs[index] = new
                old.name = f"{name}:replaced"
                new.name, new.shape, new.type = name, old.shape, old.type


def single_reader(value: ir.Value) -> ir.Node | None:
    """The only node that reads `value`, or None where there are several, none, or it is a graph output."""
    readers = list(value.consumers())
    return readers[0] if len(readers) == 1 and not value.is_graph_output() else None


def ancestors(values: Iterable[ir.Value | None]) -> set[ir.Node]:
    """Every node that `values` depend on."""
    found: set[ir.Node] = set()
    stack = [value.producer() for value in values if value is not None]
    while stack:
        node = stack.pop()
        if node is None or node in found:
            continue
        found.add(node)
        stack.extend(value.producer() for value in node.inputs if value is not None)
    return found


def descendants(value: ir.Value) -> set[ir.Node]:
    """Every node that depends on `value`."""
    found: set[ir.Node] = set()
    stack = list(value.consumers())
    while stack:
        node = stack.pop()
        if node in found:
            continue
        found.add(node)
        stack.extend(reader for output in node.outputs for reader in output.consumers())
    return found


def back_through(
    value: ir.Value | None, passable: frozenset[str], stop: Callable[[ir.Node], bool]
) -> Iterator[ir.Node]:
    """Nodes for which `stop` holds, found walking back from `value` over nodes whose type is in `passable`; nearest first."""
    queue: list[ir.Value | None] = [value]
    seen: set[ir.Node] = set()
    while queue:
        current = queue.pop(0)
        node = current.producer() if current is not None else None
        if node is None or node in seen:
            continue
        seen.add(node)
        if stop(node):
            yield node
        elif node.op_type in passable:
            queue.extend(node.inputs)


def forward_through(value: ir.Value, passable: frozenset[str], stop: Callable[[ir.Node], bool]) -> Iterator[ir.Node]:
    """Nodes for which `stop` holds, found walking forward from `value` over nodes whose type is in `passable`; nearest first."""
    queue = list(value.consumers())
    seen: set[ir.Node] = set()
    while queue:
        node = queue.pop(0)
        if node in seen:
            continue
        seen.add(node)
        if stop(node):
            yield node
        elif node.op_type in passable:
            queue.extend(reader for output in node.outputs for reader in output.consumers())


def remove_unused(graph: ir.Graph, *, keep: Iterable[ir.Value] = ()) -> bool:
    """Drop nodes whose outputs nobody reads (but those of `keep`) and initializers nobody uses; whether there were any."""
    kept = set(keep)
    modified = False
    for node in reversed(tuple(graph)):
        if not any(output.is_graph_output() or output.uses() or output in kept for output in node.outputs):
            graph.remove(node, safe=True)
            modified = True
    for name, value in tuple(graph.initializers.items()):
        if not value.uses() and not value.is_graph_input() and not value.is_graph_output():
            del graph.initializers[name]
            modified = True
    return modified
