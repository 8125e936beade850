"""Shapes that TorchScript leaves open follow from how the sizes are computed; a size from elsewhere tells nothing."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from aiasst.convert.finish.graph import Builder
from aiasst.convert.tracing import operators, shapes
from aiasst.convert.tracing.attention import LayerAttention


def graph_with(axes: list[int | None], numbers: list[int], sizes: list[str | int]) -> tuple[ir.Graph, ir.Value]:
    """A Reshape of x (`sizes`) to the sizes of its `axes` (None: -1), then `numbers`; (graph, its output)."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(sizes))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 23}, name="g")
    build = Builder(graph, "g")
    measured = build.op("Shape", [x])
    parts = [
        build.constant([-1])
        if axis is None
        else build.op("Unsqueeze", [build.op("Gather", [measured, build.constant(axis)]), build.constant([0])])
        for axis in axes
    ]
    target = build.op("Concat", [*parts, *(build.constant([number]) for number in numbers)], axis=0)
    made = build.op("Reshape", [x, target])
    graph.extend(build.nodes)
    return graph, made


@pytest.mark.parametrize(
    ("axes", "numbers", "sizes", "expected"),
    [
        ([0, 1], [-1, 16], ["b", "s", 64], ["b", "s", 4, 16]),  # heads apart
        ([0, 1], [-1], ["b", "s", 4, 16], ["b", "s", 64]),  # heads together
        ([0, 1], [4, 16], ["b", "s", 64], ["b", "s", 4, 16]),
        ([None, 1], [], ["b", "s"], ["b", "s"]),  # nothing happens
        ([0, 2], [-1], ["b", "s", 64], None),  # a size from another axis
        ([0, 1], [-1, 16], ["b", "s", "n"], None),  # nothing to count
        ([0], [-1, 16], ["b", "s", 64], None),  # the open axis is among those merged
    ],
)
def test_reshapes(
    axes: list[int | None], numbers: list[int], sizes: list[str | int], expected: list[str | int] | None
) -> None:
    graph, made = graph_with(axes, numbers, sizes)
    shapes.tell(graph, [])
    assert made.shape == (ir.Shape(expected) if expected is not None else None)


def test_markers_transposes_and_norms() -> None:
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["b", "s", 4, 16]))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 23}, name="g")
    build = Builder(graph, "g")
    normed = build.op("RMSNormalization", [x, build.constant([1.0], ir.DataType.FLOAT)])
    swapped = build.op("Transpose", [normed], perm=[0, 2, 1, 3])
    context = build.op("Attention", [swapped, swapped, swapped], domain=operators.DOMAIN)
    graph.extend(build.nodes)
    shapes.tell(graph, [LayerAttention(heads=4, kv_heads=4, head_dim=16, scale=1.0)])
    assert swapped.shape == ir.Shape(["b", 4, "s", 16])
    assert context.shape is not None
    assert list(context.shape)[2:] == [4, 16]
