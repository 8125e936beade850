from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from aiasst.errors import ExportError
from aiasst.quantize.check import check_runs, made_up_inputs
from aiasst.runtime.session import GraphSession
from tests.quantize import graphs

X = {"x": (TensorProto.FLOAT, ["rows", 8])}


def _graph(path: Path, weight: np.ndarray, *more: str) -> Path:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node(more[0] if more else "Tanh", ["h"], ["y"])]
    return graphs.save(path, nodes, X, {"y": 2}, {"w": weight})


def test_a_graph_that_computes_passes(tmp_path: Path) -> None:
    path = _graph(tmp_path / "m.onnx", graphs.random(8, 4))
    check_runs(path, path)


def test_numbers_that_are_not_finite_are_a_fault_when_the_original_has_none(tmp_path: Path) -> None:
    good = _graph(tmp_path / "good.onnx", graphs.random(8, 4))
    bad = _graph(tmp_path / "bad.onnx", np.full((8, 4), np.nan, np.float32))
    with pytest.raises(ExportError, match="not finite"):
        check_runs(bad, good)
    check_runs(bad, bad)


def test_a_graph_that_does_not_open_is_a_fault(tmp_path: Path) -> None:
    good = _graph(tmp_path / "good.onnx", graphs.random(8, 4))
    bad = _graph(tmp_path / "bad.onnx", graphs.random(9, 4), "NoSuchOperator")
    with pytest.raises(ExportError, match="does not open"):
        check_runs(bad, good)


def test_a_graph_that_refuses_any_input_we_think_of_is_given_the_benefit_of_the_doubt(tmp_path: Path) -> None:
    """Reshape to 7 columns fails on our 4 rows of 8, in the original as well."""
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    path = graphs.save(tmp_path / "m.onnx", nodes, X, {"y": 2}, {"shape": np.array([-1, 7])})
    check_runs(path, path)


def test_inputs_fit_the_graph(tmp_path: Path) -> None:
    nodes = [helper.make_node("Gather", ["w", "ids"], ["y"])]
    inputs = {"ids": (TensorProto.INT64, ["batch", "sequence"])}
    path = graphs.save(tmp_path / "m.onnx", nodes, inputs, {"y": 3}, {"w": graphs.random(5, 4)})
    feeds = made_up_inputs(GraphSession.open(path))
    assert feeds["ids"].shape == (1, 4)
    assert feeds["ids"].dtype == np.int64


def test_a_graph_whose_inputs_have_other_types_is_held_against_its_original(tmp_path: Path) -> None:
    """As with an int8 cache: the original cannot be fed what the new graph is fed, and still has the last word."""
    good = _graph(tmp_path / "good.onnx", graphs.random(8, 4))
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    inputs = {"x": (TensorProto.INT8, ["rows", 8])}
    bad = graphs.save(tmp_path / "bad.onnx", nodes, inputs, {"y": 2}, {"w": np.full((8, 4), np.nan, np.float32)})
    with pytest.raises(ExportError, match="not finite, and the original"):
        check_runs(bad, good)
