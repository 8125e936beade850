"""The rewritten graph computes what the old one did, up to the rounding of 8-bit weights, in every form a product can have."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from aiasst.artifacts.recipe import Recipe, WeightFormat
from aiasst.errors import ArtifactError
from aiasst.progress import Progress
from aiasst.quantize import quantize
from aiasst.runtime.session import GraphSession
from tests.quantize import graphs

INT8 = WeightFormat(format="int8", block_size=32)
SPECS = [INT8, WeightFormat(format="w8a8"), WeightFormat(format="fp16")]
X = {"x": (TensorProto.FLOAT, ["rows", 96])}
WEIGHT, BIAS = graphs.random(96, 40), graphs.random(40, seed=1)


def _recipe(spec: WeightFormat) -> Recipe:
    return Recipe(name="test", description="", algorithm="rtn", default=spec)


def _compare(source: Path, out: Path, spec: WeightFormat = INT8) -> Path:
    """Quantize, run both, and return the new graph's path."""
    folder = quantize(source, out, recipe=_recipe(spec))
    x = graphs.random(7, 96, seed=3)
    before, after = (GraphSession.open(path).run({"x": x}) for path in (source, folder.graph))
    for expected, got in zip(before, after, strict=True):
        assert got.shape == expected.shape
        assert np.linalg.norm(got - expected) < 0.02 * np.linalg.norm(expected)
    return folder.graph


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.label)
@pytest.mark.parametrize(
    "attributes",
    [{}, {"transB": 1}, {"alpha": 0.5}, {"beta": 2.0}, {"transB": 1, "alpha": -3.0, "beta": 0.25}],
    ids=str,
)
@pytest.mark.parametrize("bias", [None, BIAS, BIAS[None], np.float32(2)], ids=["none", "N", "1xN", "scalar"])
def test_gemm_in_all_its_forms(tmp_path: Path, spec: WeightFormat, attributes: dict[str, Any], bias: Any) -> None:
    inputs = ["x", "w"] + ([] if bias is None else ["b"])
    weight = np.ascontiguousarray(WEIGHT.T) if attributes.get("transB") else WEIGHT
    constants = {"w": weight} | ({} if bias is None else {"b": bias})
    node = helper.make_node("Gemm", inputs, ["y"], **attributes)
    path = _compare(graphs.save(tmp_path / "m.onnx", [node], X, {"y": 2}, constants), tmp_path / "out", spec)
    assert "Gemm" not in graphs.operators(path)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_bias_that_follows_is_fused(tmp_path: Path, swapped: bool) -> None:
    inputs = ["b", "h"] if swapped else ["h", "b"]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Add", inputs, ["y"])]
    path = _compare(graphs.save(tmp_path / "m.onnx", nodes, X, {"y": 2}, {"w": WEIGHT, "b": BIAS}), tmp_path / "out")
    assert graphs.operators(path) == ["MatMulNBits"]


def test_an_addition_whose_other_reader_needs_the_product_is_kept(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Add", ["h", "b"], ["y"]),
        helper.make_node("Tanh", ["h"], ["z"]),
    ]
    source = graphs.save(tmp_path / "m.onnx", nodes, X, {"y": 2, "z": 2}, {"w": WEIGHT, "b": BIAS})
    assert "Add" in graphs.operators(_compare(source, tmp_path / "out"))


def test_an_addition_of_a_matrix_is_no_bias(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Add", ["h", "b"], ["y"])]
    constants = {"w": WEIGHT, "b": graphs.random(7, 40)}
    source = graphs.save(tmp_path / "m.onnx", nodes, X, {"y": 2}, constants)
    assert "Add" in graphs.operators(_compare(source, tmp_path / "out"))


def test_a_product_that_is_an_output_keeps_its_name(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Add", ["h", "b"], ["y"])]
    source = graphs.save(tmp_path / "m.onnx", nodes, X, {"h": 2, "y": 2}, {"w": WEIGHT, "b": BIAS})
    path = _compare(source, tmp_path / "out")
    assert GraphSession.open(path).output_names == ("h", "y")


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.label)
def test_one_weight_in_two_products(tmp_path: Path, spec: WeightFormat) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Tanh", ["x"], ["t"]),
        helper.make_node("MatMul", ["t", "w"], ["z"]),
    ]
    source = graphs.save(tmp_path / "m.onnx", nodes, X, {"y": 2, "z": 2}, {"w": WEIGHT})
    path = _compare(source, tmp_path / "out", spec)
    assert (path.parent / "model.onnx.data").stat().st_size < 2 * WEIGHT.nbytes * 0.6


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.label)
def test_products_in_a_chain(tmp_path: Path, spec: WeightFormat) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "v"], ["y"])]
    constants = {"w": WEIGHT, "v": graphs.random(40, 96, seed=9)}
    _compare(graphs.save(tmp_path / "m.onnx", nodes, X, {"y": 2}, constants), tmp_path / "out", spec)


def test_what_is_left_alone_is_the_same_to_the_bit(tmp_path: Path) -> None:
    experts = graphs.random(3, 96, 40)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("MatMul", ["x", "experts"], ["z"])]
    source = graphs.save(tmp_path / "m.onnx", nodes, X, {"y": 2, "z": 3}, {"w": WEIGHT, "experts": experts})
    x = graphs.random(7, 96, seed=3)
    folder = quantize(source, tmp_path / "out", recipe=_recipe(INT8))
    before, after = (GraphSession.open(path).run({"x": x}, ["z"])[0] for path in (source, folder.graph))
    np.testing.assert_array_equal(before, after)
    assert folder.manifest.weights["experts"].format == "float"


def test_small_tensors_in_the_source_file_are_taken_along(tmp_path: Path) -> None:
    """A bias of a few hundred bytes stays in the graph, not behind in the source's file."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Mul", ["h", "b"], ["y"])]
    source = graphs.save(tmp_path / "in" / "m.onnx", nodes, X, {"y": 2}, {"w": WEIGHT, "b": BIAS})
    onnx.save(onnx.load(source), source, save_as_external_data=True, location="m.data", size_threshold=0)
    path = _compare(source, tmp_path / "out")
    shutil.rmtree(source.parent)
    assert GraphSession.open(path).run({"x": graphs.random(2, 96)})[0].shape == (2, 40)


def test_numbers_that_are_not_finite_stop_the_work_and_leave_nothing(tmp_path: Path) -> None:
    weight = WEIGHT.copy()
    weight[3, 3] = np.nan
    source = graphs.save(
        tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], X, {"y": 2}, {"w": weight}
    )
    for spec in SPECS:
        with pytest.raises(ArtifactError, match="not finite"):
            quantize(source, tmp_path / "out", recipe=_recipe(spec))
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_progress_names_each_weight_and_ends_at_the_total(tmp_path: Path) -> None:
    events: list[Progress] = []
    source = graphs.product(tmp_path / "m.onnx", graphs.random(96, 40))
    quantize(source, tmp_path / "out", recipe=_recipe(INT8), progress=events.append)
    mine = [event for event in events if event.stage == "quantize"]
    assert "layers.0.o_proj.weight → int8-b32" in mine[0].note
    assert mine[-1].done == mine[-1].total == 96 * 40
