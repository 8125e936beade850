"""Marked attention becomes GroupQueryAttention, or is refused with the layer and the reason."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from aiasst.artifacts import signature
from aiasst.convert.finish.graph import Builder, add_weight
from aiasst.convert.tracing import attention
from aiasst.convert.tracing.attention import LayerAttention, Positions
from aiasst.errors import ExportError

LAYER = LayerAttention(heads=2, kv_heads=1, head_dim=4, scale=0.5, softcap=30.0, window=7)
WIDTH = 8


def product(build: Builder, x: ir.Value, name: str, columns: int) -> ir.Value:
    rng = np.random.default_rng(len(name))
    weight = add_weight(
        build.graph, f"{name}.weight", ir.Tensor(rng.standard_normal((WIDTH, columns)).astype(np.float32))
    )
    made = build.op("MatMul", [x, weight], name=name)
    made.shape = ir.Shape(["b", "s", columns])
    return made


def split(build: Builder, x: ir.Value, heads: int) -> ir.Value:
    apart = build.op("Reshape", [x, build.constant([0, 0, heads, 4])])
    apart.shape = ir.Shape(["b", "s", heads, 4])
    swapped = build.op("Transpose", [apart], perm=[0, 2, 1, 3])
    swapped.shape = ir.Shape(["b", heads, "s", 4])
    return swapped


def model(*, packed: bool = False, shifted: str = "", layers: int = 1) -> ir.Model:
    """Embedding, `layers` times marked attention with its projections, head; positions change `shifted` (query or both)."""
    ids, positions = (
        ir.Value(name=name, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["b", "s"]))
        for name in (signature.INPUT_IDS, attention.POSITION_IDS)
    )
    graph = ir.Graph([ids, positions], [], nodes=[], opset_imports={"": 23, "aiasst": 1}, name="marked")
    build = Builder(graph, "m")
    table = add_weight(graph, "embed.weight", ir.Tensor(np.ones((10, WIDTH), np.float32)))
    stream = build.op("Gather", [table, ids])
    stream.shape = ir.Shape(["b", "s", WIDTH])
    for layer in range(layers):
        parts = _projections(build, stream, layer, packed=packed)
        query, key, value = (split(build, part, heads) for part, heads in zip(parts, (2, 1, 1), strict=True))
        if shifted:
            offset = build.op(
                "Cast", [build.op("Unsqueeze", [positions, build.constant([1, 3])])], to=ir.DataType.FLOAT
            )
            query = _moved(build, query, offset)
            key = _moved(build, key, offset) if shifted == "both" else key
        context = build.op("Attention", [query, key, value], domain=attention.MARKER_DOMAIN)
        context.shape = ir.Shape(["b", "s", 2, 4])
        merged = build.op("Reshape", [context, build.constant([0, 0, WIDTH])])
        merged.shape = ir.Shape(["b", "s", WIDTH])
        stream = build.op("Add", [stream, product(build, merged, f"o{layer}", WIDTH)])
    logits = product(build, stream, "head", 10)
    logits.name = signature.LOGITS
    graph.extend(build.nodes)
    graph.outputs.append(logits)
    return ir.Model(graph, ir_version=10)


def _projections(build: Builder, stream: ir.Value, layer: int, *, packed: bool) -> list[ir.Value]:
    if not packed:
        return [product(build, stream, f"{name}{layer}", size) for name, size in (("q", 8), ("k", 4), ("v", 4))]
    whole = product(build, stream, f"qkv{layer}", 16)
    build.op("Split", [whole, build.constant([8, 4, 4])], axis=-1, outputs=3)
    outputs = list(build.nodes[-1].outputs)
    for output, size in zip(outputs, (8, 4, 4), strict=True):
        output.shape = ir.Shape(["b", "s", size])
    return outputs


def _moved(build: Builder, x: ir.Value, offset: ir.Value) -> ir.Value:
    moved = build.op("Add", [x, offset])
    moved.shape = x.shape
    return moved


def only_attention(made: ir.Model) -> ir.Node:
    (node,) = [node for node in made.graph if node.op_type == "GroupQueryAttention"]
    return node


def test_the_node_says_what_the_layer_computes() -> None:
    made = model()
    attention.fuse(made, [LAYER], Positions(16))
    node = only_attention(made)
    values = {name: attribute.value for name, attribute in node.attributes.items()}
    assert values == {
        "num_heads": 2, "kv_num_heads": 1, "scale": 0.5, "softcap": 30.0, "local_window_size": 7, "do_rotary": 0,
        "rotary_interleaved": 0,
    }  # fmt: skip
    # Fed by the projections themselves: the heads are split and merged inside the node.
    producers = [value.producer() for value in node.inputs[:3] if value is not None]
    assert [producer.name for producer in producers if producer is not None] == ["q0", "k0", "v0"]
    (reader,) = node.outputs[0].consumers()
    assert reader.name == "o0"
    assert [value.name for value in made.graph.inputs] == [
        "input_ids", "attention_mask", "past_key_values.0.key", "past_key_values.0.value",
    ]  # fmt: skip
    assert [value.name for value in made.graph.outputs] == ["logits", "present.0.key", "present.0.value"]
    assert "aiasst" not in made.opset_imports


def test_a_packed_projection_stays_packed() -> None:
    made = model(packed=True)
    attention.fuse(made, [LAYER], Positions(16))
    node = only_attention(made)
    whole = node.inputs[0]
    assert whole is not None
    producer = whole.producer()
    assert producer is not None
    assert producer.name == "qkv0"
    assert node.inputs[1] is None
    assert node.inputs[2] is None


@pytest.mark.parametrize(
    ("shifted", "said"),
    [
        (
            "query",
            "layer 0: what positions do to query and key is no rotary embedding: only one of query and key has it",
        ),
        ("both", "layer 0: what positions do to query and key is no rotary embedding: "),
    ],
)
def test_what_is_no_rotation_is_refused(shifted: str, said: str) -> None:
    with pytest.raises(ExportError) as caught:
        attention.fuse(model(shifted=shifted), [LAYER], Positions(16))
    assert caught.value.message.startswith(said)


def test_a_layer_without_a_marker_is_refused() -> None:
    with pytest.raises(ExportError, match="3 layers were expected, 2 attentions found"):
        attention.fuse(model(layers=2), [LAYER] * 3, Positions(16))


def test_another_input_is_refused() -> None:
    made = model()
    made.graph.inputs.append(ir.Value(name="pixels"))
    with pytest.raises(ExportError, match="pixels"):
        attention.fuse(made, [LAYER], Positions(16))
