"""Layer after layer computes what the whole graph computes, for every architecture and for graphs of others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from aiasst.artifacts import signature
from aiasst.artifacts.model_folder import ModelFolder
from aiasst.errors import ArtifactError
from aiasst.quantize.calibrate.layers import Array, LayeredModel, cut_layers
from aiasst.quantize.inventory import take_inventory
from aiasst.quantize.source import open_source
from aiasst.runtime.session import GraphSession
from tests import checkpoints
from tests.quantize import graphs

Tiny = Callable[[str], ModelFolder]
IDS = np.random.default_rng(3).integers(4, checkpoints.VOCABULARY, (2, 33))


def _cut(path: Path | ModelFolder) -> LayeredModel:
    source = open_source(path)
    return cut_layers(source, take_inventory(source.model.graph, source.table))


def _walk(model: LayeredModel, ids: Array = IDS, replaced: dict[str, Array] | None = None) -> Array:
    """The result of the last layer, every layer fed with what the one before it gave."""
    values = model.first_feeds(ids)
    for layer in model.layers:
        assert set(values) == set(layer.inputs)
        outputs = layer.outputs if layer is not model.layers[-1] else (model.result,)
        session = model.open(layer, outputs, replaced)
        assert set(session.input_names) <= set(layer.inputs)
        values = dict(zip(outputs, session.run({n: values[n] for n in session.input_names}, outputs), strict=True))
    return values[model.result]


def _whole(path: Path, result: str, ids: Array = IDS) -> Array:
    session = GraphSession.open(path)
    feeds: dict[str, Array] = {name: np.ones_like(ids) for name in session.input_names if "past" not in name}
    feeds |= {signature.INPUT_IDS: ids}
    if signature.TOKEN_TYPE_IDS in feeds:
        feeds[signature.TOKEN_TYPE_IDS] = np.zeros_like(ids)
    if signature.ALL_LOGITS in session.optional_names:
        feeds[signature.ALL_LOGITS] = np.array(True)
    for name in set(session.input_names) - set(feeds):
        _, heads, _, size = session.input_shape(name)
        feeds[name] = np.zeros((len(ids), int(heads or 0), 0, int(size or 0)), np.float32)
    return session.run(feeds, [result])[0]


@pytest.mark.parametrize("name", checkpoints.ARCHITECTURES)
def test_layer_after_layer_is_the_whole_graph(tiny: Tiny, name: str) -> None:
    folder = tiny(name)
    model = _cut(folder)
    got, wanted = _walk(model), _whole(folder.graph, model.result)
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max() < 1e-5


@pytest.mark.parametrize("name", checkpoints.ARCHITECTURES)
def test_each_layer_has_its_products_and_one_stream_comes_in(tiny: Tiny, name: str) -> None:
    folder = tiny(name)
    model = _cut(folder)
    decoder = name != "bert"
    numbered = [layer for layer in model.layers if layer.title.startswith("layer")]
    assert [layer.title for layer in model.layers] == [
        "embedding",
        *(f"layer {n}" for n in range(len(numbered))),
        *(["head"] if decoder else []),
    ]
    assert len(numbered) == (folder.manifest.shape.layers if folder.manifest.shape else 2)
    up = "up_proj" if name in ("gpt2", "bert") else "gate_up_proj"
    for number, layer in enumerate(numbered):
        assert [group.weights for group in layer.groups] == [
            (f"layers.{number}.{part}.weight",) for part in ("qkv_proj", "o_proj", up, "down_proj")
        ]
        floats = [v for n, v in _entering(model, layer.index).items() if v.dtype == np.float32 and "mask" not in n]
        assert [v.ndim for v in floats] == [3], "the residual stream, and nothing beside it"
    assert not model.layers[0].groups
    if decoder:
        assert model.layers[-1].groups[0].value == model.final
        assert model.layers[-1].outputs == (model.final,)


def _entering(model: LayeredModel, index: int) -> dict[str, Array]:
    values = model.first_feeds(IDS)
    for layer in model.layers[:index]:
        session = model.open(layer, layer.outputs)
        values = dict(
            zip(layer.outputs, session.run({n: values[n] for n in session.input_names}, layer.outputs), strict=True)
        )
    return values


def test_the_inputs_of_a_group_are_those_of_the_product(tiny: Tiny) -> None:
    """And only the nodes they need are run: the values behind are not even there."""
    model = _cut(tiny("llama"))
    layer = model.layers[1]
    entering = _entering(model, 1)
    norm, attention, _, inner = (group.value for group in layer.groups)
    session = model.open(layer, [norm, attention, inner])
    x, y, z = session.run({name: entering[name] for name in session.input_names})
    assert (x.shape[-1], y.shape[-1], z.shape[-1]) == (172, 64, 576)
    assert model.open(layer, [norm]).input_names == (layer.inputs[0],)
    # What comes in can be asked for as well, with or without anything to compute.
    stream = layer.inputs[0]
    both = model.open(layer, [stream, norm])
    assert both.run({stream: entering[stream]}, [stream, norm])[0] is entering[stream]
    assert model.open(layer, [stream]).run({stream: entering[stream]})[0] is entering[stream]


def test_replaced_weights_take_the_place_of_the_originals(tiny: Tiny) -> None:
    """A matrix, a norm's vector and a bias; all of them small here, one handed over and two in the graph."""
    folder = tiny("gpt2")
    model = _cut(folder)
    constants = open_source(folder).model.graph.initializers
    names = ("layers.0.o_proj.weight", "layers.1.ln_2.weight", "layers.1.down_proj.bias")
    replaced = {n: graphs.random(*constants[n].const_value.shape.numpy(), seed=7) for n in names}
    before = _walk(model)
    after = {name: _walk(model, replaced={name: array}) for name, array in replaced.items()}
    assert all(np.abs(before - result).max() > 1e-3 for result in after.values())
    same = {name: np.asarray(constants[name].const_value.numpy()) for name in names}
    assert np.array_equal(before, _walk(model, replaced=same))


def test_a_replacement_of_another_shape_is_a_mistake(tiny: Tiny) -> None:
    model = _cut(tiny("llama"))
    with pytest.raises(ValueError, match="cannot replace"):
        model.open(model.layers[1], model.layers[1].outputs, {"layers.0.o_proj.weight": graphs.random(3, 4)})


def test_the_source_stays_as_it_is(tiny: Tiny) -> None:
    source = open_source(tiny("llama"))
    before = [(node.op_type, node.name) for node in source.model.graph]
    model = cut_layers(source, take_inventory(source.model.graph, source.table))
    _walk(model)
    assert [(node.op_type, node.name) for node in source.model.graph] == before
    assert not np.asarray(source.model.graph.initializers[signature.ALL_LOGITS].const_value.numpy())


# ---------------------------------------------------------------------- graphs of others


def _foreign(path: Path, layers: int, *, named: bool, extra: list[str] | None = None, **more: object) -> Path:
    """A stack of gated MLPs behind norms that are written out, with types told of inputs and outputs only."""
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["x0"])]
    constants: dict[str, object] = {"table": graphs.random(50, 48), "two": np.float32(2), "eps": np.float32(1e-5)}
    for n in range(layers):
        stem = f"layers.{n}." if named else f"w{'abcdefgh'[n]}"
        sizes = {"gate": (48, 96), "up": (48, 96), "down": (96, 48)}
        constants |= {f"{stem}{k}": graphs.random(*s, seed=n) / 10 for k, s in sizes.items()}
        constants[f"gamma{n}"] = graphs.random(48, seed=n)
        nodes += [
            helper.make_node("Pow", [f"x{n}", "two"], [f"p{n}"]),
            helper.make_node("ReduceMean", [f"p{n}"], [f"m{n}"], axes=[-1]),
            helper.make_node("Add", [f"m{n}", "eps"], [f"e{n}"]),
            helper.make_node("Sqrt", [f"e{n}"], [f"s{n}"]),
            helper.make_node("Div", [f"x{n}", f"s{n}"], [f"d{n}"]),
            helper.make_node("Mul", [f"d{n}", f"gamma{n}"], [f"h{n}"]),
            helper.make_node("MatMul", [f"h{n}", f"{stem}gate"], [f"g{n}"]),
            helper.make_node("MatMul", [f"h{n}", f"{stem}up"], [f"u{n}"]),
            helper.make_node("Sigmoid", [f"g{n}"], [f"a{n}"]),
            helper.make_node("Mul", [f"a{n}", f"u{n}"], [f"i{n}"]),
            helper.make_node("MatMul", [f"i{n}", f"{stem}down"], [f"o{n}"]),
            helper.make_node("Add", [f"x{n}", f"o{n}"], [f"x{n + 1}"]),
        ]
    nodes += [helper.make_node("Identity", [f"x{layers}"], ["y"])]
    outputs = {"y": 3} | dict.fromkeys(extra or [], 3)
    ids = {"input_ids": (TensorProto.INT64, ["batch", "sequence"])}
    return graphs.save(path, nodes, ids, outputs, constants, opset=17, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("named", [True, False])
def test_a_graph_of_others_is_cut_by_names_or_by_counting(tmp_path: Path, named: bool) -> None:
    path = _foreign(tmp_path / "model.onnx", 5, named=named)
    model = _cut(path)
    ids = IDS % 50
    assert np.abs(_walk(model, ids) - _whole(path, "y", ids)).max() < 1e-5
    weights = [name for layer in model.layers for group in layer.groups for name in group.weights]
    assert len(weights) == len(set(weights)) == 15
    if named:
        assert [layer.title for layer in model.layers] == ["embedding", *(f"layer {n}" for n in range(5))]
        assert [layer.inputs for layer in model.layers[1:]] == [(f"x{n}",) for n in range(5)]
        assert [len(group.weights) for group in model.layers[1].groups] == [2, 1]
    else:
        # Three to a stack of gate, up and down: gate and up read one value and stay together.
        sizes = [[len(group.weights) for group in layer.groups] for layer in model.layers]
        assert sizes == [[], [2, 1, 2], [1, 2, 1], [2, 1, 2], [1]]


def test_a_result_from_the_middle_travels_to_the_end(tmp_path: Path) -> None:
    path = _foreign(tmp_path / "model.onnx", 3, named=True, extra=["x1"])
    model = _cut(path)
    assert model.layers[-1].outputs == ("y", "x1")
    assert "x1" in model.layers[-1].inputs
    ids = IDS % 50
    assert np.abs(_walk(model, ids) - _whole(path, "y", ids)).max() < 1e-5


def test_a_branch_reads_what_is_outside(tmp_path: Path) -> None:
    """If: its two bodies read a value and a weight of the graph around them."""
    out = helper.make_tensor_value_info("b", TensorProto.FLOAT, None)
    bodies = {
        f"{name}_branch": helper.make_graph([helper.make_node(op, ["x", "square"], ["b"])], name, [], [out])
        for name, op in (("then", "MatMul"), ("else", "MatMul"))
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        helper.make_node("MatMul", ["x", "layers.0.w"], ["h"]),
        helper.make_node("ReduceMax", ["h"], ["m"], keepdims=0),
        helper.make_node("Cast", ["m"], ["yes"], to=TensorProto.BOOL),
        helper.make_node("If", ["yes"], ["c"], **bodies),
        helper.make_node("Add", ["h", "c"], ["z"]),
        helper.make_node("MatMul", ["z", "layers.1.w"], ["y"]),
    ]
    constants = {"table": graphs.random(50, 32), "square": graphs.random(32, 32)}
    constants |= {f"layers.{n}.w": graphs.random(32, 32, seed=n) for n in range(2)}
    ids = {"input_ids": (TensorProto.INT64, ["batch", "sequence"])}
    path = graphs.save(tmp_path / "model.onnx", nodes, ids, {"y": 3}, constants)
    model = _cut(path)
    assert np.abs(_walk(model, IDS % 50) - _whole(path, "y", IDS % 50)).max() < 1e-4


def test_a_graph_that_takes_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be fed a text: its inputs are x") as caught:
        _cut(graphs.product(tmp_path / "model.onnx", graphs.random(64, 32)))
    assert "--algorithm mse" in caught.value.hint
