from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper

from aiasst.artifacts.model_folder import Weight
from aiasst.quantize.inventory import Inventory, is_quantized, take_inventory
from tests.quantize import graphs

X = {"x": (TensorProto.FLOAT, ["rows", 64])}


def _inventory(path: Path) -> Inventory:
    return take_inventory(ir.load(path).graph, None)


def test_products_and_lookups_are_found_in_the_order_of_use(tmp_path: Path) -> None:
    path = graphs.save(
        tmp_path / "m.onnx",
        [
            helper.make_node("Gather", ["wte.weight", "ids"], ["h"]),
            helper.make_node("MatMul", ["h", "model.layers.3.mlp.down_proj.weight"], ["d"]),
            helper.make_node("Gemm", ["x", "score.weight"], ["y"], transB=1),
        ],
        {"ids": (TensorProto.INT64, ["batch", "sequence"]), **X},
        {"d": 3, "y": 2},
        {
            "score.weight": graphs.random(10, 64),
            "model.layers.3.mlp.down_proj.weight": graphs.random(64, 32),
            "wte.weight": graphs.random(50, 64),
        },
    )
    found = [f.matrix for f in _inventory(path).found]
    assert [(m.role, m.layer, m.n, m.k, m.rows_first) for m in found] == [
        ("embed", None, 50, 64, True),
        ("down", 3, 32, 64, False),
        ("classifier", None, 10, 64, True),
    ]


def test_a_manifest_knows_better_than_names(tmp_path: Path) -> None:
    path = graphs.product(tmp_path / "m.onnx", graphs.random(64, 32))
    row = Weight(role="down", layer=5, shape=(64, 32), format="fp32", bytes=8192)
    (found,) = take_inventory(ir.load(path).graph, {"layers.0.o_proj.weight": row}).found
    assert (found.matrix.role, found.matrix.layer) == ("down", 5)


def test_a_tied_matrix_is_planned_as_the_head(tmp_path: Path) -> None:
    (found,) = _inventory(graphs.tied(tmp_path / "m.onnx", graphs.random(50, 64))).found
    assert found.matrix.tied
    assert (found.matrix.role, found.matrix.planned_role) == ("embed", "lm_head")


def test_what_cannot_be_quantized_is_said_with_its_reason(tmp_path: Path) -> None:
    path = graphs.save(
        tmp_path / "m.onnx",
        [
            helper.make_node("MatMul", ["x", "experts"], ["a"]),
            helper.make_node("MatMul", ["x", "seen"], ["b"]),
            helper.make_node("Relu", ["seen"], ["c"]),
            helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
            helper.make_node("MatMul", ["half", "narrow"], ["d16"]),
            helper.make_node("Cast", ["d16"], ["d"], to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["x", "square"], ["e"]),
            helper.make_node("Gemm", ["e", "square"], ["f"], transB=1),
            helper.make_node("Gemm", ["turned", "plain"], ["g"], transA=1),
        ],
        {**X, "turned": (TensorProto.FLOAT, [64, "rows"])},
        {"a": 3, "b": 2, "c": 2, "d": 2, "f": 2, "g": 2},
        {
            "experts": graphs.random(2, 64, 32),
            "seen": graphs.random(64, 32),
            "narrow": graphs.random(64, 32).astype(np.float16),
            "square": graphs.random(64, 64),
            "plain": graphs.random(64, 32),
        },
    )
    inventory = _inventory(path)
    assert not inventory.found
    assert {left.name: left.reason for left in inventory.left_alone} == {
        "experts": "has 3 dimensions, not 2",
        "seen": "is read by Relu as well",
        "narrow": "is float16, not float32",
        "square": "is read both as it lies and transposed",
        "plain": "is read by Gemm in a form that no format has",
    }


def test_quantized_graphs_are_recognized(tmp_path: Path) -> None:
    plain = graphs.product(tmp_path / "m.onnx", graphs.random(64, 32))
    assert not is_quantized(ir.load(plain).graph)
    node = helper.make_node("DequantizeLinear", ["w", "s"], ["y"])
    path = graphs.save(tmp_path / "q.onnx", [node], {}, {"y": 2}, {"w": np.zeros((4, 4), np.int8), "s": np.float32(1)})
    assert is_quantized(ir.load(path).graph)
