"""Which caches can be int8: those that GroupQueryAttention alone reads, in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from aiasst.artifacts.model_folder import ModelFolder
from aiasst.errors import ArtifactError
from aiasst.quantize.cache.nodes import CacheTensor, find_caches, quantize_caches
from aiasst.quantize.cache.scales import Rotation
from tests import checkpoints
from tests.runtime.graphs import HEAD_DIM, KV_HEADS, tiny_decoder

Tiny = Callable[[str], ModelFolder]


def _changed(path: Path, change: Callable[[onnx.ModelProto], None]) -> ir.Graph:
    model = onnx.load(path)
    change(model)
    return ir.from_proto(model).graph


def test_keys_and_values_of_each_layer_are_found(tmp_path: Path) -> None:
    graph = ir.load(tiny_decoder(tmp_path / "m.onnx")).graph
    turned, channels = Rotation(HEAD_DIM, interleaved=False), KV_HEADS * HEAD_DIM
    assert find_caches(graph) == (
        CacheTensor("present.0.key", channels, turned), CacheTensor("present.0.value", channels, None),
        CacheTensor("present.1.key", channels, turned), CacheTensor("present.1.value", channels, None),
    )  # fmt: skip


@pytest.mark.parametrize("name", checkpoints.DECODERS)
def test_every_architecture_keeps_its_cache_in_the_nodes(tiny: Tiny, name: str) -> None:
    folder = tiny(name)
    tensors = find_caches(ir.load(folder.graph).graph)
    assert folder.manifest.shape is not None
    assert len(tensors) == 2 * folder.manifest.shape.layers
    rotations = [tensor.rotation for tensor in tensors[::2]]
    if name == "gpt2":
        assert not any(rotations)
    elif name != "smollm3":  # which leaves out every fourth
        assert all(rotations)


def test_a_graph_is_int8_only_once(tmp_path: Path) -> None:
    graph = ir.load(tiny_decoder(tmp_path / "m.onnx")).graph
    scales = np.full((1, KV_HEADS, 1, HEAD_DIM), 0.02, np.float32)
    quantize_caches(graph, {tensor.present: scales for tensor in find_caches(graph)})
    caches = [value for value in (*graph.inputs, *graph.outputs) if "key" in value.name or "value" in value.name]
    assert {value.dtype for value in caches} == {ir.DataType.INT8}
    assert len([name for name in graph.initializers if name.endswith("_scale")]) == 4
    with pytest.raises(ArtifactError, match=r"past_key_values.0.key is int8"):
        find_caches(graph)


def test_an_encoder_has_none(tiny: Tiny) -> None:
    with pytest.raises(ArtifactError, match="no cache"):
        find_caches(ir.load(tiny("bert").graph).graph)


def test_half_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is float16, and only one of float32"):
        find_caches(ir.load(tiny_decoder(tmp_path / "m.onnx", np.float16)).graph)


def test_a_cache_that_others_read_is_refused(tmp_path: Path) -> None:
    path = tiny_decoder(tmp_path / "m.onnx")

    def before(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node("Neg", ["past_key_values.1.value"], ["negative"]))

    def behind(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node("Neg", ["present.1.value"], ["negative"]))

    def elsewhere(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            if node.op_type == "GroupQueryAttention":
                node.op_type = "Attention"

    def shapeless(model: onnx.ModelProto) -> None:
        for value in model.graph.input:
            if value.name == "past_key_values.1.value":
                value.type.tensor_type.shape.dim[1].dim_param = "heads"

    with pytest.raises(ArtifactError, match=r"past_key_values.1.value does not tell how many heads"):
        find_caches(_changed(path, shapeless))
    with pytest.raises(ArtifactError, match=r"past_key_values.1.value is read by Neg"):
        find_caches(_changed(path, before))
    with pytest.raises(ArtifactError, match=r"past_key_values.1.value is read by other nodes"):
        find_caches(_changed(path, behind))
    with pytest.raises(ArtifactError, match=r"is read by Attention; only that of one GroupQueryAttention"):
        find_caches(_changed(path, elsewhere))


def test_tables_of_part_of_a_head_turn_that_part(tmp_path: Path) -> None:
    def half(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.name in ("cos", "sin"):
                array = onnx.numpy_helper.to_array(tensor)[:, : HEAD_DIM // 4]
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
        for node in model.graph.node:
            if node.op_type == "GroupQueryAttention":
                node.attribute.append(helper.make_attribute("rotary_interleaved", 1))

    graph = _changed(tiny_decoder(tmp_path / "m.onnx"), half)
    assert find_caches(graph)[0].rotation == Rotation(HEAD_DIM // 2, interleaved=True)
