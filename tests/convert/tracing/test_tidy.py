"""Tidying changes the writing of a graph, never what it computes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from aiasst.convert.finish.graph import Builder, add_weight
from aiasst.convert.tracing import tidy

RNG = np.random.default_rng(0)


def traced() -> ir.Model:
    """Heads split through computed shapes, swapped, normed, swapped back, merged; a transposed weight; dead ends."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["b", "s", 12]))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 23}, name="traced")
    build = Builder(graph, "t")
    weight = add_weight(graph, "layer.weight", ir.Tensor(RNG.standard_normal((12, 12), np.float32)))
    gain = add_weight(graph, "norm.weight", ir.Tensor(RNG.standard_normal(4).astype(np.float32)))
    product = build.op("MatMul", [x, build.op("Transpose", [weight], perm=[1, 0])])
    product.shape = x.shape
    shape = build.op("Slice", [build.op("Shape", [x]), build.constant([0]), build.constant([2])])
    sizes = build.op("Concat", [shape, build.constant([3, 4])], axis=0)
    heads = build.op("Reshape", [product, sizes], allowzero=1)
    heads.shape = ir.Shape(["b", "s", 3, 4])
    swapped = build.op("Transpose", [heads], perm=[0, 2, 1, 3])
    swapped.shape = ir.Shape(["b", 3, "s", 4])
    normed = build.op("RMSNormalization", [swapped, gain], axis=-1, epsilon=1e-6)
    normed.shape = swapped.shape
    back = build.op("Transpose", [normed], perm=[0, 2, 1, 3])
    back.shape = heads.shape
    merged = build.op("Reshape", [back, build.op("Shape", [x])])
    merged.shape = x.shape
    dead = build.op("Sigmoid", [merged], name="pooled")
    for output, name in ((merged, "logits"), (dead, "pooled")):
        output.name, output.dtype = name, ir.DataType.FLOAT
        graph.outputs.append(output)
    dead.shape = x.shape
    graph.extend(build.nodes)
    return ir.Model(graph, ir_version=10)


def test_a_tidy_graph_computes_the_same() -> None:
    model = traced()
    before = ReferenceEvaluator(ir.to_proto(model))
    tidy.keep_first_output(model.graph)
    tidy.tidy(model)
    after = ReferenceEvaluator(ir.to_proto(model))
    for batch, sequence in ((1, 1), (2, 5)):
        x = RNG.standard_normal((batch, sequence, 12), np.float32)
        np.testing.assert_allclose(after.run(None, {"x": x})[0], before.run(None, {"x": x})[0], atol=1e-6)


def test_a_tidy_graph_is_small() -> None:
    model = traced()
    tidy.keep_first_output(model.graph)
    tidy.tidy(model)
    kinds = [node.op_type for node in model.graph]
    assert "Shape" not in kinds
    assert "Concat" not in kinds
    assert "Sigmoid" not in kinds
    assert kinds.index("RMSNormalization") < kinds.index("Transpose")
    assert any(name.startswith("layer.weight") for name in model.graph.initializers)
    assert len({node.name for node in model.graph}) == len(kinds)
