"""A tiny real decoder with our signature, built by hand: embedding, GroupQueryAttention with rotary positions, head."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from aiasst.artifacts import signature

VOCABULARY, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, LAYERS, CONTEXT = 61, 32, 2, 1, 16, 2, 128


def tiny_decoder(path: Path, dtype: type = np.float32, *, prune: bool = True, seed: int = 0) -> Path:
    """Write the graph to `path`; with `prune` it has all_logits and gives the last token's logits by default."""
    random = np.random.default_rng(seed)
    element = TensorProto.FLOAT16 if dtype is np.float16 else TensorProto.FLOAT
    weights: dict[str, np.ndarray] = {}

    def weight(name: str, *shape: int) -> str:
        weights[name] = (random.normal(size=shape) / np.sqrt(shape[0])).astype(dtype)
        return name

    angles = np.arange(CONTEXT)[:, None] / 100 ** (np.arange(HEAD_DIM // 2) / (HEAD_DIM // 2))
    weights |= {"cos": np.cos(angles).astype(dtype), "sin": np.sin(angles).astype(dtype)}
    constants = {"one": np.array([1]), "minus_one": np.array([-1]), "zero": np.array([0]), "end": np.array([2**60])}
    width = (HEADS + 2 * KV_HEADS) * HEAD_DIM
    nodes = [
        helper.make_node("ReduceSum", [signature.ATTENTION_MASK, "one"], ["sums"], keepdims=0),
        helper.make_node("Sub", ["sums", "one"], ["before"]),
        helper.make_node("Cast", ["before"], ["seqlens"], to=TensorProto.INT32),
        helper.make_node("Shape", [signature.ATTENTION_MASK], ["size"], start=1, end=2),
        helper.make_node("Cast", ["size"], ["sizes"], to=TensorProto.INT32),
        helper.make_node("Squeeze", ["sizes"], ["total"]),
        helper.make_node("Gather", [weight("embed", VOCABULARY, HIDDEN), signature.INPUT_IDS], ["x0"]),
    ]
    for layer, (past, present) in enumerate(zip(*[iter(signature.cache_pairs(LAYERS))] * 2, strict=True)):
        (key, new_key), (value, new_value) = past, present
        nodes += [
            helper.make_node("MatMul", [f"x{layer}", weight(f"qkv{layer}", HIDDEN, width)], [f"q{layer}"]),
            helper.make_node(
                "GroupQueryAttention",
                [f"q{layer}", "", "", key, value, "seqlens", "total", "cos", "sin"],
                [f"a{layer}", new_key, new_value],
                domain="com.microsoft",
                num_heads=HEADS,
                kv_num_heads=KV_HEADS,
                do_rotary=1,
            ),
            helper.make_node("MatMul", [f"a{layer}", weight(f"o{layer}", HEADS * HEAD_DIM, HIDDEN)], [f"y{layer}"]),
            helper.make_node("Add", [f"x{layer}", f"y{layer}"], [f"x{layer + 1}"]),
        ]
    head = weight("head", HIDDEN, VOCABULARY)
    last = f"x{LAYERS}"
    if prune:
        nodes += [
            helper.make_node("Where", [signature.ALL_LOGITS, "zero", "minus_one"], ["start"]),
            helper.make_node("Slice", [last, "start", "end", "one"], ["kept"]),
        ]
        last = "kept"
    nodes.append(helper.make_node("MatMul", [last, head], [signature.LOGITS]))

    def cache(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, element, ["batch", KV_HEADS, None, HEAD_DIM])

    inputs = [
        helper.make_tensor_value_info(signature.INPUT_IDS, TensorProto.INT64, ["batch", "sequence"]),
        helper.make_tensor_value_info(signature.ATTENTION_MASK, TensorProto.INT64, ["batch", "total"]),
        *(cache(past) for past, _ in signature.cache_pairs(LAYERS)),
    ]
    if prune:
        inputs.append(helper.make_tensor_value_info(signature.ALL_LOGITS, TensorProto.BOOL, []))
        constants[signature.ALL_LOGITS] = np.array(False)
    outputs = [
        helper.make_tensor_value_info(signature.LOGITS, element, ["batch", None, VOCABULARY]),
        *(cache(present) for _, present in signature.cache_pairs(LAYERS)),
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in {**weights, **constants}.items()]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path
