"""Faster forms of an encoder's graph: the same numbers, other nodes, and what is left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from aiasst.quantize.rephrase import rephrase
from aiasst.runtime.session import GraphSession
from tests.quantize import graphs

SIZE = 24


def _norm(path: Path, *, outputs: tuple[str, ...] = ("y",), bias: bool = True, opset: int = 21) -> Path:
    inputs = ["x", "z", "gamma", "beta", *(["bias"] if bias else [])]
    node = helper.make_node("SkipLayerNormalization", inputs, list(outputs), name="norm", epsilon=1e-6)
    node.domain = "com.microsoft"
    floats = (TensorProto.FLOAT, ["batch", "sequence", SIZE])
    vectors = {name: graphs.random(SIZE, seed=seed) for seed, name in enumerate(inputs[2:])}
    named = {name: 3 for name in outputs if name}
    return graphs.save(path, [node], {"x": floats, "z": floats}, named, vectors, opset=opset)


def _rephrased(path: Path) -> Path:
    model = ir.load(path)
    rephrase(model.graph)
    ir.save(model, path.with_name("new.onnx"))
    return path.with_name("new.onnx")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("outputs", [("y",), ("y", "", "", "sum")])
def test_a_fused_norm_comes_apart_and_stays_so(tmp_path: Path, bias: bool, outputs: tuple[str, ...]) -> None:
    old = _norm(tmp_path / "old.onnx", outputs=outputs, bias=bias)
    new = _rephrased(old)
    assert graphs.operators(new) == ["Sum", "LayerNormalization"]
    names = [name for name in outputs if name]
    feeds = {"x": graphs.random(2, 5, SIZE, seed=8), "z": graphs.random(2, 5, SIZE, seed=9)}
    wanted, got = (GraphSession.open(path).run(feeds, names) for path in (old, new))
    for one, other in zip(wanted, got, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_norm_whose_mean_is_read_stays_as_it_is(tmp_path: Path) -> None:
    assert graphs.operators(_rephrased(_norm(tmp_path / "old.onnx", outputs=("y", "mean")))) == [
        "SkipLayerNormalization"
    ]


def test_an_old_graph_stays_as_it_is(tmp_path: Path) -> None:
    assert graphs.operators(_rephrased(_norm(tmp_path / "old.onnx", opset=16))) == ["SkipLayerNormalization"]


def test_all_layers_read_one_mask_of_numbers(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["kept"], ["flags"], to=TensorProto.BOOL),
        helper.make_node("Unsqueeze", ["flags", "axes"], ["wide"]),
        helper.make_node("Expand", ["wide", "shape"], ["mask"]),
        *(
            helper.make_node("Attention", [f"h{i}"] * 3 + ["mask"], [f"h{i + 1}"], q_num_heads=2, kv_num_heads=2)
            for i in range(2)
        ),
    ]
    floats = (TensorProto.FLOAT, [2, 6, 16])
    constants = {"axes": np.array([1, 2]), "shape": np.array([2, 1, 6, 6])}
    inputs = {"h0": floats, "kept": (TensorProto.INT64, [2, 6])}
    old = graphs.save(tmp_path / "old.onnx", nodes, inputs, {"h2": 3}, constants, opset=23)
    new = _rephrased(old)
    assert graphs.operators(new).count("Where") == 1
    feeds = {"h0": graphs.random(2, 6, 16), "kept": np.array([[1] * 6, [1, 1, 0, 0, 0, 0]])}
    wanted, got = (GraphSession.open(path).run(feeds)[0] for path in (old, new))
    np.testing.assert_allclose(wanted, got, atol=1e-6)
