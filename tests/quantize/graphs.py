"""Small ONNX files for the tests of the quantize stage, made with the onnx package, which the stage itself does not use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, tuple[int, Sequence[int | str]]],
    outputs: dict[str, int],
    initializers: dict[str, Any],
    *,
    opset: int = 21,
) -> Path:
    """Write a graph of `nodes`; inputs name → (element type, shape), outputs name → rank of a float output."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * rank) for n, rank in outputs.items()],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in initializers.items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports)
    model.ir_version = 10
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def random(*shape: int, seed: int = 0) -> Any:
    """Normal numbers, float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def product(path: Path, weight: Any, **attributes: Any) -> Path:
    """Input x [batch, sequence, K] times `weight` [K, N] → y."""
    return save(
        path,
        [helper.make_node("MatMul", ["x", "layers.0.o_proj.weight"], ["y"], name="layers.0.o_proj")],
        {"x": (TensorProto.FLOAT, ["batch", "sequence", weight.shape[0]])},
        {"y": 3},
        {"layers.0.o_proj.weight": weight},
        **attributes,
    )


def tied(path: Path, embedding: Any) -> Path:
    """Input ids [batch, sequence] → rows of `embedding` [V, H] → scores against all its rows."""
    head = helper.make_node("FusedMatMul", ["rows", "embed_tokens.weight"], ["logits"], name="lm_head", transB=1)
    head.domain = "com.microsoft"
    return save(
        path,
        [helper.make_node("Gather", ["embed_tokens.weight", "ids"], ["rows"], name="embed_tokens"), head],
        {"ids": (TensorProto.INT64, ["batch", "sequence"])},
        {"logits": 3, "rows": 3},
        {"embed_tokens.weight": embedding},
    )


def operators(path: Path) -> list[str]:
    """Operator names of a file's graph, in order."""
    return [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]


def nodes(path: Path, op_type: str) -> list[onnx.NodeProto]:
    """Nodes of one operator."""
    return [n for n in onnx.load(path, load_external_data=False).graph.node if n.op_type == op_type]


def attribute(node: onnx.NodeProto, name: str) -> Any:
    """An attribute's value."""
    return next(helper.get_attribute_value(a) for a in node.attribute if a.name == name)


def constants(path: Path) -> dict[str, Any]:
    """Name → array of a file's initializers."""
    tensors = onnx.load(path).graph.initializer
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in tensors}
