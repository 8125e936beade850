"""The part of a graph that computes some values from others, as a small graph of its own. Knows no layer and no product.

Large constants become inputs of the small graph, to be fed as arrays; small ones and vectors stay in it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aiasst.quantize.weights_file import read_array

Array = npt.NDArray[Any]

# Smaller constants, and vectors, stay in the small graph.
_WEIGHT_BYTES = 1024

_NUMPY_TYPES = frozenset(
    {
        ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.INT64, ir.DataType.INT32,
        ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.BOOL,
    }
)  # fmt: skip


class Part:
    """The nodes that some values need, and what they read from outside."""

    def __init__(self, values: Mapping[str, ir.Value], entering: Collection[str], outputs: Sequence[str]) -> None:
        """The way from the values `entering` to `outputs`, by name; `values` are all of the graph (`values_of`)."""
        self.outputs = [values[name] for name in outputs]
        self.entering: dict[str, ir.Value] = {}
        """What it must be fed: some of `entering`, and inputs of the graph."""
        constants: dict[str, ir.Value] = {}
        needed: set[int] = set()
        waiting = list(self.outputs)
        while waiting:
            value = waiting.pop()
            name, producer = value.name or "", value.producer()
            if value.is_initializer():
                constants[name] = value
            elif name in entering or producer is None:
                self.entering[name] = value
            elif id(producer) not in needed:
                needed.add(id(producer))
                waiting += reads(producer)
        graph = self.outputs[0].graph
        self.nodes = [] if graph is None else [node for node in graph if id(node) in needed]
        self.weights = [value for value in constants.values() if is_big(value)]
        """Large constants."""
        self._constants = [value for value in constants.values() if not is_big(value)]

    def serialize(self, model: ir.Model, replaced: Mapping[str, Array]) -> bytes:
        """As a file whose inputs are `entering` and then `weights`.

        Args:
            model: the model that the part is of.
            replaced: other contents of small constants, by name.

        Raises:
            ValueError: one has another shape than what it replaces.
        """
        view = ir.GraphView(
            [*self.entering.values(), *self.weights],
            self.outputs,
            nodes=self.nodes,
            initializers=self._constants,
            opset_imports=model.graph.opset_imports,
            name=model.graph.name,
        )
        graph = view.clone()
        for value, original in zip(graph.inputs, view.inputs, strict=True):
            _declare(value, original)
        for name, value in graph.initializers.items():
            assert value.const_value is not None
            inline = ir.Tensor(fitting(replaced[name], value.const_value), name=name) if name in replaced else None
            value.const_value = inline or _inline(value.const_value, name)
        for node in graph:
            for value in node.outputs:
                # The shapes that a graph tells need not hold for an empty cache and all rows.
                value.shape = None
        serialized: bytes = ir.to_proto(ir.Model(graph, ir_version=model.ir_version)).SerializeToString()
        return serialized


def fitting(array: Array, tensor: ir.TensorProtocol) -> Array:
    """`array` in the type of `tensor`, whose place it takes, C-contiguous. Raises ValueError: it has another shape."""
    shape = tuple(int(d) for d in tensor.shape.numpy())
    if array.shape != shape:
        raise ValueError(f"an array of shape {array.shape} cannot replace {tensor.name} of shape {shape}")
    return np.ascontiguousarray(array, dtype=tensor.dtype.numpy())


def _declare(value: ir.Value, original: ir.Value) -> None:
    """Give an input of the small graph its type and, where it is sure, its shape."""
    tensor = original.const_value
    if tensor is not None:
        value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tuple(int(d) for d in tensor.shape.numpy()))
        value.const_value = None
        return
    if original.producer() is not None:
        value.shape = None


def values_of(graph: ir.Graph) -> dict[str, ir.Value]:
    """Every value of `graph` by name."""
    values = {value.name or "": value for value in (*graph.inputs, *graph.initializers.values())}
    return values | {value.name: value for node in graph for value in node.outputs if value.name}


def reads(node: ir.Node) -> list[ir.Value]:
    """What `node` reads of its graph, in its branches and loops as well."""
    values = [value for value in node.inputs if value is not None]
    for attribute in node.attributes.values():
        inner = [attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH else []
        inner += list(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else []
        for part in inner:
            for below in ir.traversal.RecursiveGraphIterator(part):
                values += [value for value in below.inputs if value is not None and value.graph is node.graph]
            values += [value for value in part.outputs if value.graph is node.graph]
    return values


def nodes_for(results: Iterable[ir.Value]) -> set[int]:
    """The nodes (by id) that `results` depend on."""
    nodes: set[int] = set()
    waiting = list(results)
    while waiting:
        node = waiting.pop().producer()
        if node is not None and id(node) not in nodes:
            nodes.add(id(node))
            waiting += reads(node)
    return nodes


def is_big(value: ir.Value) -> bool:
    """Whether a constant is handed over as an array: matrices and tables that numpy has a type for."""
    tensor = value.const_value
    if tensor is None or len(tensor.shape) < 2 or tensor.nbytes < _WEIGHT_BYTES:
        return False
    return tensor.dtype in _NUMPY_TYPES


def _inline(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    """A tensor that needs no file."""
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor
    if tensor.dtype in _NUMPY_TYPES:
        return ir.Tensor(np.array(read_array(tensor)), name=name)
    return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name)


def fed_inputs(graph: ir.Graph) -> list[ir.Value]:
    """Inputs without a constant behind them."""
    return [value for value in graph.inputs if not value.is_initializer()]


def is_cache(value: ir.Value) -> bool:
    """Keys and values of tokens before: a float input of three dimensions or more that is called so."""
    rank = 0 if value.shape is None else len(value.shape)
    called = any(word in (value.name or "") for word in ("past", "cache"))
    return called and value.dtype is not None and value.dtype.is_floating_point() and rank >= 3
