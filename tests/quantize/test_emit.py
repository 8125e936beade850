from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper

from aiasst.quantize.emit import Emitter, stem_of
from tests.quantize import graphs


def _graph(tmp_path: Path) -> ir.Graph:
    nodes = [helper.make_node("Tanh", ["x"], ["h"], name="tanh"), helper.make_node("Abs", ["h"], ["y"], name="abs")]
    path = graphs.save(tmp_path / "m.onnx", nodes, {"x": (TensorProto.FLOAT, ["rows"])}, {"y": 1}, {})
    return ir.load(path).graph


def test_names_do_not_clash(tmp_path: Path) -> None:
    graph = _graph(tmp_path)
    emit = Emitter(graph)
    values = [emit.op("Neg", [graph.inputs[0]], name="tanh") for _ in range(2)]
    emit.place_before(graph[0])
    assert [node.name for node in graph] == ["tanh.1", "tanh.2", "tanh", "abs"]
    assert len({value.name for value in values} | {"x", "h", "y"}) == 5


def test_a_constant_is_stored_once(tmp_path: Path) -> None:
    graph = _graph(tmp_path)
    emit = Emitter(graph)
    same = [emit.constant(np.array([1], np.int64)) for _ in range(2)]
    others = [emit.constant(np.array(1, np.int64)), emit.constant(np.array([1], np.int32))]
    assert same[0] is same[1]
    assert len(graph.initializers) == 1 + len(others)


def test_a_shared_chain_stands_behind_its_source_whoever_asks_first(tmp_path: Path) -> None:
    graph = _graph(tmp_path)
    emit = Emitter(graph)
    source = graph[0].outputs[0]
    made = [emit.shared("kind", source, lambda: emit.op("Neg", [source], name="chain")) for _ in range(2)]
    assert made[0] is made[1]
    assert [node.op_type for node in graph] == ["Tanh", "Neg", "Abs"]


def test_a_shared_chain_of_an_input_stands_first(tmp_path: Path) -> None:
    graph = _graph(tmp_path)
    emit = Emitter(graph)
    emit.shared("kind", graph.inputs[0], lambda: emit.op("Neg", [graph.inputs[0]], name="chain"))
    assert [node.op_type for node in graph] == ["Neg", "Tanh", "Abs"]


def test_the_stem_of_a_weight() -> None:
    assert stem_of("layers.0.o_proj.weight") == "layers.0.o_proj"
    assert stem_of("onnx::MatMul_7") == "onnx::MatMul_7"
