"""Adding nodes to a graph: names that clash with none, constants stored once, chains shared by several users. Knows no format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aiasst.quantize.matrix import Matrix
from aiasst.quantize.ranges import InputRange

MICROSOFT = "com.microsoft"

Attribute = int | float | str | Sequence[int] | ir.TensorProtocol


class Emitter:
    """Collects new nodes until `place_before` puts them where they belong."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._pending: list[ir.Node] = []
        # Source and result by kind and identity; the source is held so that its identity is not used again.
        self._shared: dict[tuple[str, int], tuple[ir.Value, ir.Value]] = {}
        self._names = {value.name for node in graph for value in node.outputs}
        self._names |= {node.name for node in graph} | set(graph.initializers) | {i.name for i in graph.inputs}

    @property
    def opset(self) -> int:
        """Version of the standard operators in this graph."""
        return self._graph.opset_imports.get("", 1)

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Attribute] | None = None,
        *,
        name: str,
        domain: str = "",
    ) -> ir.Value:
        """A new node with one output, named `name` where that is free; returns the output."""
        if domain:
            self._graph.opset_imports.setdefault(domain, 1)
        node = ir.node(op_type, inputs, attributes, domain=domain, name=self._free(name))
        node.outputs[0].name = self._free(f"{node.name}.out")
        self._pending.append(node)
        return node.outputs[0]

    def constant(self, array: npt.NDArray[np.generic]) -> ir.Value:
        """A small constant, stored once however often it is asked for."""
        digest = "x".join(map(str, array.shape)) + "." + array.tobytes().hex()
        name = f"const.{array.dtype}.{digest}"
        if name not in self._graph.initializers:
            tensor = ir.tensor(array, name=name)
            self._graph.register_initializer(
                ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
            )
        return self._graph.initializers[name]

    def shared(self, kind: str, source: ir.Value, build: Callable[[], ir.Value]) -> ir.Value:
        """What `build` makes from `source`, made once and placed right behind the node that produces `source`."""
        key = (kind, id(source))
        if key not in self._shared:
            outer, self._pending = self._pending, []
            self._shared[key] = source, build()
            producer = source.producer()
            if producer is not None:
                self._graph.insert_after(producer, self._pending)
            else:
                self._graph.insert_before(self._graph[0], self._pending)
            self._pending = outer
        return self._shared[key][1]

    def place_before(self, node: ir.Node) -> None:
        """Put all that was collected in front of `node`."""
        self._graph.insert_before(node, self._pending)
        self._pending = []

    def release(self, node: ir.Node) -> None:
        """Let `node`'s name be used again: it is about to be replaced."""
        self._names.discard(node.name)

    def _free(self, name: str) -> str:
        candidate, count = name, 1
        while candidate in self._names:
            candidate, count = f"{name}.{count}", count + 1
        self._names.add(candidate)
        return candidate


class PackedWeight:
    """The packed parts of one matrix in the file, as initializers of the graph in whatever shape an operator wants them."""

    def __init__(
        self,
        matrix: Matrix,
        parts: Mapping[str, ir.ExternalTensor],
        graph: ir.Graph,
        input_range: InputRange | None = None,
    ) -> None:
        self.matrix = matrix
        self.input_range = input_range
        """Of what is multiplied with it, where calibration has fixed one."""
        self._parts = parts
        self._graph = graph

    def has(self, suffix: str) -> bool:
        """Whether there is a part of this name (zero points may be absent)."""
        return suffix in self._parts

    def initializer(self, suffix: str, shape: Sequence[int] | None = None) -> ir.Value:
        """Part `suffix`, in `shape` when given.

        A second shape becomes a second initializer over the same bytes of the file: nothing is stored or folded twice.
        """
        tensor = self._parts[suffix]
        wanted = tuple(shape) if shape is not None else tuple(int(d) for d in tensor.shape.numpy())
        first = wanted == tuple(tensor.shape.numpy())
        name = stem_of(self.matrix.name) + suffix + ("" if first else "." + "x".join(map(str, wanted)))
        if name not in self._graph.initializers:
            self._graph.register_initializer(_initializer(name, tensor, wanted))
        return self._graph.initializers[name]


def stem_of(name: str) -> str:
    """Name of the product that a weight belongs to: `layers.0.o_proj.weight` → `layers.0.o_proj`."""
    return name.removesuffix(".weight")


def _initializer(name: str, tensor: ir.ExternalTensor, shape: Sequence[int]) -> ir.Value:
    same_bytes = ir.ExternalTensor(
        tensor.location,
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=ir.Shape(shape),
        name=name,
        base_dir=tensor.base_dir,
    )
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(tensor.dtype), const_value=same_bytes)
