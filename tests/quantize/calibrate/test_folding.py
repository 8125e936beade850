"""Scales folded into a norm leave the function of the model as it is, wherever they are found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from aiasst.artifacts import signature
from aiasst.artifacts.model_folder import ModelFolder
from aiasst.artifacts.recipe import Recipe, WeightFormat
from aiasst.quantize.calibrate import folding
from aiasst.quantize.calibrate.contents import FloatVector, weight_rows
from aiasst.quantize.inventory import Found, take_inventory
from aiasst.quantize.matrix import FloatMatrix
from aiasst.quantize.plan import make_plan
from aiasst.quantize.ranges import InputRange
from aiasst.quantize.rewrite import rewrite
from aiasst.quantize.source import QuantizeSource, open_source
from aiasst.quantize.weights_file import WeightsFile
from aiasst.runtime.session import GraphSession
from tests import checkpoints
from tests.quantize import graphs

Tiny = Callable[[str], ModelFolder]


@dataclass(frozen=True)
class _Replaced:
    """Contents made beforehand."""

    rows: Mapping[str, FloatMatrix]
    vectors: Mapping[str, FloatVector]
    ranges: Mapping[str, InputRange] = field(default_factory=dict)

    def matrix(self, found: Found) -> FloatMatrix | None:
        return self.rows.get(found.matrix.name)


def _scales(size: int, seed: int) -> FloatVector:
    return np.exp(np.random.default_rng(seed).uniform(-2, 2, size)).astype(np.float32)


def _folded(source: QuantizeSource, out: Path) -> Path:
    """The model with random scales folded wherever that is possible."""
    graph = source.model.graph
    inventory = take_inventory(graph, source.table)
    rows = {found.matrix.name: np.array(weight_rows(found)) for found in inventory.found}
    vectors: dict[str, FloatVector] = {}
    for seed, norm in enumerate(folding.find_norms(inventory.found).values()):
        scales = _scales(rows[norm.weights[0]].shape[1], seed)
        vectors |= {n: folding.divide(graph.initializers[n].const_value.numpy(), scales) for n in norm.vectors}
        rows |= {name: folding.multiply_columns(rows[name], scales) for name in norm.weights}
    recipe = Recipe(name="test", description="", default=WeightFormat(format="fp32"))
    matrices = [found.matrix for found in inventory.found]
    plan = make_plan(recipe, matrices, layers=inventory.layers, opset=source.opset, others={}, table_bytes=0)
    out.mkdir()
    with WeightsFile(out / "model.onnx.data") as file:
        rewrite(graph, inventory.found, plan, _Replaced(rows, vectors), file)
    ir.save(source.model, out / "model.onnx")
    return out / "model.onnx"


@pytest.mark.parametrize("name", ["llama", "phi3", "gemma2", "gpt2", "olmo2"])
def test_the_folded_model_is_the_same_function(tiny: Tiny, tmp_path: Path, name: str) -> None:
    source = tiny(name)
    before, after = (_logits(path) for path in (source.graph, _folded(open_source(source), tmp_path / "out")))
    assert np.abs(before - after).max() < 1e-4 * np.abs(before).max()


def _logits(path: Path) -> np.ndarray:
    session = GraphSession.open(path)
    ids = np.random.default_rng(5).integers(4, 105, (2, 20))
    feeds = {
        signature.INPUT_IDS: ids,
        signature.ATTENTION_MASK: np.ones_like(ids),
        signature.ALL_LOGITS: np.array(True),
    }
    for name in session.input_names:
        if name not in feeds:
            _, heads, _, size = session.input_shape(name)
            feeds[name] = np.zeros((2, int(heads or 0), 0, int(size or 0)), np.float32)
    return session.run(feeds, [signature.LOGITS])[0]


def _found(name: str, tiny: Tiny) -> tuple[Found, ...]:
    source = open_source(tiny(name))
    return take_inventory(source.model.graph, source.table).found


@pytest.mark.parametrize("name", checkpoints.DECODERS)
def test_every_norm_before_a_product_is_found(tiny: Tiny, name: str) -> None:
    found = _found(name, tiny)
    layers = 1 + max(f.matrix.layer or 0 for f in found)
    folded = [name for fold in folding.find_norms(found).values() for name in fold.weights]
    untied_head = [f.matrix.name for f in found if f.matrix.role == "lm_head" and not f.matrix.tied]
    # olmo2 has its norms behind the products; a tied head shares its columns with the embedding.
    inner = 0 if name == "olmo2" else 2 * layers
    assert len(folded) == inner + len(untied_head)
    assert set(untied_head) <= set(folded)


def test_a_norm_that_is_also_the_residual_takes_no_scales(tiny: Tiny) -> None:
    assert not folding.find_norms(_found("bert", tiny))


def _graph(tmp_path: Path, extra: list[object], outputs: dict[str, int], **constants: object) -> tuple[Found, ...]:
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gamma", "beta"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
        *extra,
    ]
    tensors = {"gamma": np.ones(96, np.float32), "beta": np.ones(96, np.float32), "w": graphs.random(96, 40)}
    path = graphs.save(
        tmp_path / "m.onnx", nodes, {"x": (TensorProto.FLOAT, ["rows", 96])}, {"y": 2} | outputs, tensors | constants
    )
    return take_inventory(open_source(path).model.graph, None).found


@pytest.mark.parametrize(
    ("extra", "outputs", "constants"),
    [
        ([helper.make_node("Tanh", ["h"], ["z"])], {"z": 2}, {}),
        ([helper.make_node("MatMul", ["x", "w"], ["z"])], {"z": 2}, {}),
        ([helper.make_node("Mul", ["x", "gamma"], ["z"])], {"z": 2}, {}),
        ([helper.make_node("MatMul", ["h", "v"], ["z"])], {"z": 3}, {"v": graphs.random(3, 96, 4)}),
        ([], {"h": 2}, {}),
        ([], {}, {"gamma": np.ones((1, 96), np.float32)}),
    ],
    ids=[
        "another reader",
        "a weight of two inputs",
        "a shared gamma",
        "a product of no format",
        "an output",
        "odd gamma",
    ],
)
def test_what_something_else_depends_on_is_left_alone(
    tmp_path: Path, extra: list[object], outputs: dict[str, int], constants: dict[str, object]
) -> None:
    assert not folding.find_norms(_graph(tmp_path, extra, outputs, **constants))


def test_a_plain_norm_takes_scales_in_gamma_and_beta(tmp_path: Path) -> None:
    (fold,) = folding.find_norms(_graph(tmp_path, [], {})).values()
    assert (fold.value, fold.vectors, fold.weights) == ("h", ("gamma", "beta"), ("w",))
