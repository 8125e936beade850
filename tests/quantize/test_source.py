from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from aiasst.errors import AiasstError, ArtifactError
from aiasst.quantize import preview, quantize
from aiasst.quantize.source import open_source
from aiasst.runtime.session import GraphSession
from tests.quantize import graphs

WEIGHT = graphs.random(128, 40)
X = {"x": (TensorProto.FLOAT, ["rows", 128])}


def _refusal(path: Path) -> AiasstError:
    with pytest.raises(ArtifactError) as caught:
        open_source(path)
    return caught.value


def test_nothing_there_is_said(tmp_path: Path) -> None:
    assert "there is no folder" in _refusal(tmp_path / "absent").message


def test_a_checkpoint_is_sent_to_convert(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert "aiasst convert" in _refusal(tmp_path).hint


def test_a_file_that_is_no_onnx_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"this is no protobuf at all")
    assert "not an ONNX model" in _refusal(tmp_path / "m.onnx").message


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"")
    assert "not an ONNX model" in _refusal(tmp_path / "m.onnx").message


def test_a_folder_with_one_file_needs_no_name_and_one_with_two_does(tmp_path: Path) -> None:
    graphs.product(tmp_path / "some" / "decoder.onnx", WEIGHT)
    assert open_source(tmp_path / "some").name == "some"
    graphs.product(tmp_path / "some" / "encoder.onnx", WEIGHT)
    assert "2 ONNX files" in _refusal(tmp_path / "some").message


def _with_external_data(path: Path, location: str) -> Path:
    graphs.product(path, WEIGHT)
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location=location, size_threshold=0)
    return path


def test_missing_and_cut_weights_are_noticed_before_the_work(tmp_path: Path) -> None:
    path = _with_external_data(tmp_path / "m.onnx", "m.data")
    assert open_source(path).name == "m"
    (tmp_path / "m.data").write_bytes((tmp_path / "m.data").read_bytes()[:-1])
    assert "missing or cut short" in _refusal(path).message
    (tmp_path / "m.data").unlink()
    assert "missing or cut short" in _refusal(path).message


def test_weights_outside_the_folder_are_not_read(tmp_path: Path) -> None:
    path = _with_external_data(tmp_path / "inner" / "m.onnx", "m.data")
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../m.data"
    path.write_bytes(model.SerializeToString())
    (path.parent / "m.data").rename(tmp_path / "m.data")
    assert "leaves the folder" in _refusal(path).message


def test_quantizing_twice_is_refused(tmp_path: Path) -> None:
    folder = quantize(graphs.product(tmp_path / "m.onnx", WEIGHT), tmp_path / "out", recipe="int8")
    for again in (folder.path, folder.graph):
        assert "quantized already" in _refusal(again).message


def test_a_graph_without_weights_is_refused(tmp_path: Path) -> None:
    path = graphs.save(tmp_path / "m.onnx", [helper.make_node("Tanh", ["x"], ["y"])], X, {"y": 2}, {})
    with pytest.raises(ArtifactError, match="no weight that could be quantized"):
        preview(path, recipe="int8")


def _runs_alike(source: Path, out: Path) -> None:
    folder = quantize(source, out, recipe="int8")
    assert graphs.operators(folder.graph) == ["MatMulNBits"]
    x = graphs.random(5, 128, seed=4)
    before, after = (GraphSession.open(path).run({"x": x})[0] for path in (source, folder.graph))
    assert np.linalg.norm(after - before) < 0.02 * np.linalg.norm(before)
    assert folder.manifest.source.kind == "onnx"
    assert folder.manifest.shape is None


def test_a_weight_in_a_constant_node(tmp_path: Path) -> None:
    constant = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(WEIGHT))
    nodes = [constant, helper.make_node("MatMul", ["x", "w"], ["y"])]
    _runs_alike(graphs.save(tmp_path / "m.onnx", nodes, X, {"y": 2}, {}), tmp_path / "out")


def test_a_weight_behind_a_transpose(tmp_path: Path) -> None:
    nodes = [helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]), helper.make_node("MatMul", ["x", "t"], ["y"])]
    constants = {"w": np.ascontiguousarray(WEIGHT.T)}
    _runs_alike(graphs.save(tmp_path / "m.onnx", nodes, X, {"y": 2}, constants), tmp_path / "out")


def test_a_weight_behind_an_identity(tmp_path: Path) -> None:
    nodes = [helper.make_node("Identity", ["w"], ["same"]), helper.make_node("MatMul", ["x", "same"], ["y"])]
    _runs_alike(graphs.save(tmp_path / "m.onnx", nodes, X, {"y": 2}, {"w": WEIGHT}), tmp_path / "out")


def test_a_weight_that_old_files_list_as_an_input(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    inputs = X | {"w": (TensorProto.FLOAT, WEIGHT.shape)}
    _runs_alike(graphs.save(tmp_path / "m.onnx", nodes, inputs, {"y": 2}, {"w": WEIGHT}), tmp_path / "out")


def test_a_weight_inside_a_function(tmp_path: Path) -> None:
    body = [helper.make_node("MatMul", ["a", "b"], ["c"])]
    function = helper.make_function("local", "Linear", ["a", "b"], ["c"], body, [helper.make_opsetid("", 21)])
    path = graphs.save(
        tmp_path / "m.onnx", [helper.make_node("Linear", ["x", "w"], ["y"], domain="local")], X, {"y": 2}, {"w": WEIGHT}
    )
    model = onnx.load(path)
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("local", 1))
    onnx.save(model, path)
    _runs_alike(path, tmp_path / "out")
