"""Passes on small hand-made graphs: what each changes, what it leaves, and that the numbers stay the same."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from aiasst.artifacts import signature
from aiasst.convert.finish import clean, folding, interface, packing, tied, windows
from aiasst.convert.finish.anatomy import layers
from aiasst.convert.finish.graph import Builder, add_weight, remove_unused
from aiasst.errors import ExportError
from aiasst.runtime.session import GraphSession

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY, INNER = 32, 2, 1, 16, 11, 24


class Tiny:
    """A one-layer decoder without norms: embedding, Q K V, attention, output, gate and up, down, head."""

    def __init__(self, *, biases: tuple[str, ...] = (), tied_head: str = "none") -> None:
        self.random = np.random.default_rng(0)
        ids = self.input(signature.INPUT_IDS, ir.DataType.INT64, ["batch", "sequence"])
        mask = self.input(signature.ATTENTION_MASK, ir.DataType.INT64, ["batch", "total"])
        past = [self.input(f"past_{part}", ir.DataType.FLOAT, ["batch", KV_HEADS, "past", HEAD_DIM]) for part in "kv"]
        self.graph = ir.Graph([ids, mask, *past], [], nodes=[], opset_imports={"": 24, "com.microsoft": 1}, name="tiny")
        self.build = Builder(self.graph, "tiny")
        self.biases = biases
        table = self.weight("embed", VOCABULARY, HIDDEN)
        stream = self.build.op("Gather", [table, ids])
        q, k, v = (
            self.product(stream, n, size * HEAD_DIM) for n, size in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS))
        )
        rows = self.build.op("ReduceSum", [mask, self.build.constant([1])], keepdims=0)
        lengths = self.build.op("Cast", [self.build.op("Sub", [rows, self.build.constant(1)])], to=ir.DataType.INT32)
        width = self.build.op("Gather", [self.build.op("Shape", [mask]), self.build.constant(1)])
        total = self.build.op("Cast", [width], to=ir.DataType.INT32)
        attention = self.build.op(
            "GroupQueryAttention", [q, k, v, *past, lengths, total], domain="com.microsoft", outputs=3,
            num_heads=HEADS, kv_num_heads=KV_HEADS,
        )  # fmt: skip
        self.attention = self.build.nodes[-1]
        stream = self.build.op("Add", [stream, self.product(attention, "o", HIDDEN)])
        gate = self.build.op("Sigmoid", [self.product(stream, "gate", INNER)])
        inner = self.build.op("Mul", [gate, self.product(stream, "up", INNER)])
        stream = self.build.op("Add", [stream, self.product(inner, "down", HIDDEN)])
        logits = self.head(stream, table, tied_head)
        self.graph.extend(self.build.nodes)
        for value, name in (
            (logits, signature.LOGITS),
            *zip(self.attention.outputs[1:], ("new_k", "new_v"), strict=True),
        ):
            value.name, value.dtype = name, ir.DataType.FLOAT
            self.graph.outputs.append(value)
        self.model = ir.Model(self.graph, ir_version=11)

    def input(self, name: str, dtype: ir.DataType, shape: list[int | str]) -> ir.Value:
        return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))

    def weight(self, name: str, *shape: int) -> ir.Value:
        return add_weight(self.graph, name, ir.Tensor(self.random.standard_normal(shape).astype(np.float32) * 0.3))

    def product(self, value: ir.Value, name: str, columns: int) -> ir.Value:
        rows = {"o": HEADS * HEAD_DIM, "down": INNER}.get(name, HIDDEN)
        output = self.build.op("MatMul", [value, self.weight(f"{name}_matrix", rows, columns)])
        return self.build.op("Add", [output, self.weight(f"{name}_b", columns)]) if name in self.biases else output

    def head(self, stream: ir.Value, table: ir.Value, kind: str) -> ir.Value:
        if kind == "transpose":
            return self.build.op("MatMul", [stream, self.build.op("Transpose", [table], perm=[1, 0])])
        weight = self.weight("lm_head", HIDDEN, VOCABULARY)
        if kind == "equal" and table.const_value is not None:
            weight.const_value = ir.Tensor(np.ascontiguousarray(table.const_value.numpy().T), name="lm_head")
        return self.build.op("MatMul", [stream, weight])

    def logits(self) -> np.ndarray:
        """Of a fixed prompt, by ONNX Runtime."""
        for number, node in enumerate(self.graph):
            node.name = f"{node.name}.{number}" if node.name.startswith("tiny/") else node.name
        ids = np.array([[1, 4, 7, 2]], np.int64)
        past = np.zeros((1, KV_HEADS, 0, HEAD_DIM), np.float32)
        names = [value.name for value in self.graph.inputs]
        feeds = dict(zip(names, (ids, np.ones_like(ids), past, past), strict=True))
        session = GraphSession.open(ir.to_proto(self.model).SerializeToString())
        return session.run({str(k): v for k, v in feeds.items()}, [signature.LOGITS])[0]


@pytest.mark.parametrize("biases", [(), ("q", "k", "v", "up"), ("q",), ("gate",)])
def test_packing_changes_the_form_and_not_the_numbers(biases: tuple[str, ...]) -> None:
    tiny = Tiny(biases=biases)
    before = tiny.logits()
    assert packing.qkv(tiny.graph)
    assert packing.gate_up(tiny.graph)
    remove_unused(tiny.graph)
    assert not packing.qkv(tiny.graph)
    assert not packing.gate_up(tiny.graph)
    np.testing.assert_allclose(tiny.logits(), before, atol=1e-6)
    (layer,) = layers(tiny.graph)
    assert layer.attention.inputs[1] is None
    assert [p.node.name for p in layer.inputs] == ["layers.0.qkv_proj"]
    assert (layer.inputs[0].bias is not None) == ("q" in biases)
    assert layer.feed_forward is not None
    assert layer.feed_forward.gate_up is not None
    assert sum(node.op_type == "MatMul" for node in tiny.graph) == 5


def test_gate_comes_before_up() -> None:
    tiny = Tiny()
    block = layers(tiny.graph)[0].feed_forward
    assert block is not None
    assert (block.gate.weight.name, block.up.weight.name) == ("gate_matrix", "up_matrix")  # type: ignore[union-attr]
    gate, up = (tiny.graph.initializers[f"{name}_matrix"].const_value.numpy() for name in ("gate", "up"))  # type: ignore[union-attr]
    packing.gate_up(tiny.graph)
    packed = tiny.graph.initializers["layers.0.gate_up_proj.weight"].const_value
    assert packed is not None
    np.testing.assert_array_equal(packed.numpy(), np.concatenate([gate, up], axis=1))


@pytest.mark.parametrize("kind", ["transpose", "equal"])
def test_a_tied_head_reads_the_embedding(kind: str) -> None:
    tiny = Tiny(tied_head=kind)
    before = tiny.logits()
    assert tied.apply(tiny.graph, tied=True)
    remove_unused(tiny.graph)
    np.testing.assert_allclose(tiny.logits(), before, atol=1e-6)
    node = next(node for node in tiny.graph if node.op_type == "FusedMatMul")
    assert node.inputs[1] is tied.embedding(tiny.graph)
    assert "lm_head" not in tiny.graph.initializers


def test_a_head_of_its_own_stays() -> None:
    tiny = Tiny()
    assert not tied.apply(tiny.graph, tied=True)
    assert not tied.apply(Tiny(tied_head="equal").graph, tied=False)


def test_windows_are_set_once_and_taken_away() -> None:
    tiny = Tiny()
    assert windows.apply(tiny.graph, [3])
    assert tiny.attention.attributes["local_window_size"].as_int() == 3
    assert not windows.apply(tiny.graph, [3])
    assert windows.apply(tiny.graph, [None])
    assert tiny.attention.attributes["local_window_size"].as_int() == -1


def test_windows_must_be_one_a_layer() -> None:
    with pytest.raises(ExportError, match="2 layers"):
        windows.apply(Tiny().graph, [None, None])


def test_an_input_that_nobody_feeds_is_refused() -> None:
    tiny = Tiny()
    tiny.graph.inputs.append(tiny.input("pixel_values", ir.DataType.FLOAT, ["batch"]))
    with pytest.raises(ExportError, match="pixel_values"):
        interface.decoder(tiny.graph)


def test_a_graph_without_grouped_attention_is_refused() -> None:
    tiny = Tiny()
    tiny.attention.op_type = "Attention"
    with pytest.raises(ExportError, match="GroupQueryAttention"):
        interface.decoder(tiny.graph)


def test_caches_get_the_names_of_the_signature() -> None:
    tiny = Tiny()
    interface.decoder(tiny.graph)
    assert [value.name for value in tiny.graph.inputs][2:] == [signature.past_key(0), signature.past_value(0)]
    assert [value.name for value in tiny.graph.outputs] == [
        signature.LOGITS, signature.present_key(0), signature.present_value(0),
    ]  # fmt: skip


def test_folding_computes_what_weights_alone_decide() -> None:
    tiny = Tiny()
    scale = tiny.weight("norm", HIDDEN)
    first = next(iter(tiny.graph))
    build = Builder(tiny.graph, "fold")
    shifted = build.op("Add", [scale, add_weight(tiny.graph, "one", ir.Tensor(np.float32(1)))])
    build.place_before(first)
    tiny.graph.outputs.append(shifted)
    raw = scale.const_value.numpy()  # type: ignore[union-attr]
    assert folding.apply(tiny.graph)
    assert not folding.apply(tiny.graph)
    np.testing.assert_array_equal(tiny.graph.outputs[-1].const_value.numpy(), raw + 1)  # type: ignore[union-attr]


def test_tidy_leaves_no_unused_weight_no_metadata_and_no_name_twice() -> None:
    tiny = Tiny()
    tiny.weight("orphan", 3)
    tiny.model.metadata_props["who"] = "nobody"
    for node in tiny.graph:
        node.name = "same"
        node.metadata_props["where"] = "here"
    clean.tidy(tiny.model)
    names = [node.name for node in tiny.graph]
    assert len(set(names)) == len(names)
    assert "orphan" not in tiny.graph.initializers
    assert not tiny.model.metadata_props
    assert not any(node.metadata_props for node in tiny.graph)
    assert tiny.logits().shape == (1, 4, VOCABULARY)
