"""Rotary embeddings are known by what they do: any pairing and any frequencies come back exactly, anything else is refused."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiasst.convert.finish.graph import Builder, add_weight
from aiasst.convert.tracing import rotary

HEADS, SIZE = 3, 8


def turning_graph(
    frequencies: np.ndarray, *, interleaved: bool, scaled: float = 1.0
) -> tuple[ir.Graph, ir.Value, ir.Value]:
    """x · cos + rotated(x) · sin as a model writes it, for heads first; (graph, source, target)."""
    half = len(frequencies)
    ids = ir.Value(name="position_ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["b", "s"]))
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["b", HEADS, "s", SIZE]))
    graph = ir.Graph([ids, x], [], nodes=[], opset_imports={"": 20}, name="turning")
    build = Builder(graph, "turn")
    order = np.arange(2 * half)
    signs = np.ones(2 * half, np.float32)
    if interleaved:
        order, signs[0::2] = order ^ 1, -1
    else:
        order, signs[:half] = np.roll(order, half), -1
    spread = np.repeat(frequencies, 2) if interleaved else np.tile(frequencies, 2)
    table = add_weight(graph, "frequencies", ir.Tensor(spread.astype(np.float32)))
    sign = add_weight(graph, "signs", ir.Tensor(signs * np.float32(scaled)))
    factor = add_weight(graph, "factor", ir.Tensor(np.float32(scaled)))
    places = build.op("Cast", [build.op("Unsqueeze", [ids, build.constant([1, 3])])], to=ir.DataType.FLOAT)
    angles = build.op("Mul", [places, table])
    front = build.op("Slice", [x, build.constant([0]), build.constant([2 * half]), build.constant([3])])
    back = build.op("Slice", [x, build.constant([2 * half]), build.constant([SIZE]), build.constant([3])])
    swapped = build.op("Mul", [build.op("Gather", [front, build.constant(order)], axis=3), sign])
    straight = build.op("Mul", [build.op("Mul", [front, factor]), build.op("Cos", [angles])])
    turned = build.op("Add", [straight, build.op("Mul", [swapped, build.op("Sin", [angles])])])
    target = build.op("Concat", [turned, back], axis=3)
    target.type, target.shape = ir.TensorType(ir.DataType.FLOAT), x.shape
    graph.extend(build.nodes)
    graph.outputs.append(target)
    return graph, x, target


@settings(max_examples=25, deadline=None)
@given(
    half=st.integers(2, SIZE // 2),
    interleaved=st.booleans(),
    scaled=st.sampled_from([1.0, 1.25]),
    base=st.floats(0.01, 0.9),
)
def test_tables_come_back_exactly(half: int, interleaved: bool, scaled: float, base: float) -> None:
    frequencies = (base ** np.arange(half)).astype(np.float32)
    graph, source, target = turning_graph(frequencies, interleaved=interleaved, scaled=scaled)
    piece = rotary.Piece(source, target, graph.inputs[0], HEADS, SIZE)
    pairs = rotary.pairing(rotary.matrices(piece, [0, 1, 2, 3, 100]))
    assert pairs is not None
    assert pairs.interleaved == interleaved
    assert len(pairs.first) == half
    made = rotary.tables(piece, pairs, np.arange(1500))
    angles = np.arange(1500, dtype=np.float32)[:, None] * frequencies
    np.testing.assert_allclose(made.cos, np.cos(angles) * scaled, atol=1e-6)
    np.testing.assert_allclose(made.sin, np.sin(angles) * scaled, atol=1e-6)


def matrices(size: int = 6, count: int = 3) -> np.ndarray:
    return np.broadcast_to(np.eye(size, dtype=np.float32), (count, size, size)).copy()


def test_nothing_turns() -> None:
    assert rotary.pairing(matrices()) is None


def test_scaling_by_position_is_no_rotation() -> None:
    with pytest.raises(rotary.NotRotaryError, match="scaled by their position"):
        rotary.pairing(matrices() * np.array([1, 2, 3], np.float32)[:, None, None])


def test_shearing_is_no_rotation() -> None:
    sheared = matrices()
    sheared[:, 0, 3] = 0.5
    with pytest.raises(rotary.NotRotaryError, match="not turned by an angle"):
        rotary.pairing(sheared)


@pytest.mark.parametrize("pairs", [[(0, 1), (2, 5)], [(0, 2), (3, 5)]])
def test_unknown_pairs_are_refused(pairs: list[tuple[int, int]]) -> None:
    turned = matrices()
    for i, j in pairs:
        turned[:, [i, j], [i, j]] = np.cos(0.3)
        turned[:, j, i], turned[:, i, j] = np.sin(0.3), -np.sin(0.3)
    with pytest.raises(rotary.NotRotaryError, match="coupled"):
        rotary.pairing(turned)


def test_heads_that_differ_are_refused() -> None:
    graph, source, target = turning_graph(np.array([0.5, 0.1], np.float32), interleaved=False)
    build = Builder(graph, "gain")
    gain = add_weight(graph, "gain", ir.Tensor(np.arange(1, HEADS + 1, dtype=np.float32).reshape(1, HEADS, 1, 1)))
    louder = build.op("Mul", [target, gain])
    louder.type, louder.shape = target.type, target.shape
    graph.extend(build.nodes)
    with pytest.raises(rotary.NotRotaryError, match="not treated alike"):
        rotary.matrices(rotary.Piece(source, louder, graph.inputs[0], HEADS, SIZE), [0, 1])


@pytest.mark.parametrize(
    ("shape", "layout"),
    [(["b", "s", 24], "flat"), (["b", 3, "s", 8], "heads first"), (["b", "s", 3, 8], "sequence first")],
)
def test_layouts(shape: list[str | int], layout: str) -> None:
    assert rotary.layout(ir.Value(name="x", shape=ir.Shape(shape)), 3, 8) == layout


def test_another_shape_is_no_row_of_heads() -> None:
    with pytest.raises(rotary.NotRotaryError, match="is not 3 heads of size 8"):
        rotary.layout(ir.Value(name="x", shape=ir.Shape(["b", "s", 16])), 3, 8)
