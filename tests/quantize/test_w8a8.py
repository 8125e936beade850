"""What w8a8 promises beyond the other formats: rows that do not know of each other, and one chain for shared inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from aiasst.artifacts.recipe import Recipe, WeightFormat
from aiasst.quantize import quantize
from aiasst.runtime.session import GraphSession
from tests.quantize import graphs

RECIPE = Recipe(name="test", description="", algorithm="rtn", default=WeightFormat(format="w8a8"))


def _session(tmp_path: Path, *, opset: int = 21) -> tuple[GraphSession, np.ndarray]:
    weight = graphs.random(172, 105)
    source = graphs.product(tmp_path / "m.onnx", weight, opset=opset)
    return GraphSession.open(quantize(source, tmp_path / "out", recipe=RECIPE).graph), weight


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
def test_it_works_in_graphs_old_and_new(tmp_path: Path, opset: int) -> None:
    session, weight = _session(tmp_path, opset=opset)
    x = graphs.random(1, 3, 172, seed=2)
    got = session.run({"x": x})[0]
    assert np.linalg.norm(got - x @ weight) < 0.02 * np.linalg.norm(x @ weight)


def test_a_row_gives_the_same_bytes_alone_and_beside_an_outlier(tmp_path: Path) -> None:
    session, _ = _session(tmp_path)
    rows = graphs.random(2, 3, 172, seed=2)
    rows[1] *= 1000
    together = session.run({"x": rows})[0]
    alone = session.run({"x": rows[:1]})[0]
    np.testing.assert_array_equal(together[:1], alone)


def test_a_row_of_zeros_gives_zeros(tmp_path: Path) -> None:
    session, _ = _session(tmp_path)
    rows = graphs.random(1, 2, 172)
    rows[0, 1] = 0
    result = session.run({"x": rows})[0]
    assert np.isfinite(result).all()
    assert not result[0, 1].any()


def test_products_of_one_input_share_its_quantization(tmp_path: Path) -> None:
    names = ["q_proj", "k_proj", "v_proj"]
    source = graphs.save(
        tmp_path / "m.onnx",
        [helper.make_node("Tanh", ["x"], ["h"])]
        + [helper.make_node("MatMul", ["h", f"{n}.weight"], [n], name=n) for n in names],
        {"x": (TensorProto.FLOAT, ["batch", "sequence", 64])},
        dict.fromkeys(names, 3),
        {f"{name}.weight": graphs.random(64, 32, seed=seed) for seed, name in enumerate(names)},
    )
    folder = quantize(source, tmp_path / "out", recipe=RECIPE)
    operators = graphs.operators(folder.graph)
    assert operators.count("QuantizeLinear") == 1
    assert operators.count("MatMulIntegerToFloat") == 3


def test_weights_are_symmetric_int8(tmp_path: Path) -> None:
    folder = quantize(graphs.product(tmp_path / "m.onnx", graphs.random(64, 32)), tmp_path / "out", recipe=RECIPE)
    data = np.fromfile(folder.path / "model.onnx.data", dtype=np.int8, count=64 * 32)
    assert data.min() >= -127
    assert np.abs(data.reshape(64, 32)).max(axis=0).tolist() == [127] * 32


def test_a_graph_too_old_for_it_gets_int8_and_the_plan_says_why(tmp_path: Path) -> None:
    source = graphs.product(tmp_path / "m.onnx", graphs.random(128, 32), opset=11)
    folder = quantize(source, tmp_path / "out", recipe=RECIPE)
    assert folder.manifest.weights["layers.0.o_proj.weight"].format == "int8-b128"
