"""Conformance: every architecture comes out in the one form of the house, and computes what the original computes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from aiasst.artifacts import signature
from aiasst.artifacts.model_folder import MANIFEST_NAME, ModelFolder
from aiasst.runtime.session import GraphSession
from tests.checkpoints import ARCHITECTURES, DECODERS, QK_NORM, TIED, VOCABULARY
from tests.convert.conftest import EXPORTER, Converter


def graph_of(folder: ModelFolder) -> ir.Graph:
    return ir.load(folder.graph).graph


def step(
    session: GraphSession, folder: ModelFolder, ids: list[list[int]], lengths: list[int], caches: list[np.ndarray] | None,
    **extra: np.ndarray,
) -> list[np.ndarray]:  # fmt: skip
    """One run: right-padded new ids of several rows whose total lengths are `lengths`; logits and the new caches."""
    shape = folder.manifest.shape
    assert shape is not None
    pairs = signature.cache_pairs(shape.layers)
    if caches is None:
        caches = [np.zeros((len(ids), shape.kv_heads, 0, shape.head_dim), np.float32)] * len(pairs)
    mask = (np.arange(max(lengths))[None] < np.array(lengths)[:, None]).astype(np.int64)
    feeds = {name: cache for (name, _), cache in zip(pairs, caches, strict=True)}
    feeds |= {signature.INPUT_IDS: np.array(ids, np.int64), signature.ATTENTION_MASK: mask, **extra}
    return session.run(feeds, [signature.LOGITS, *(present for _, present in pairs)])


@pytest.mark.parametrize("name", [*ARCHITECTURES, "qwen3_narrow"])
def test_computes_what_the_original_computes(name: str, converted: Converter) -> None:
    proof = converted(name).manifest.verification
    assert proof is not None
    assert proof.max_abs_diff < 1e-4
    assert proof.max_abs_diff <= proof.tolerance
    assert proof.top1_agreement == 1.0
    assert proof.tokens >= 256
    assert "prose" in proof.text


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_has_the_signature_of_the_house(name: str, converted: Converter) -> None:
    folder = converted(name)
    session = GraphSession.open(folder.graph)
    shape = folder.manifest.shape
    assert shape is not None
    pairs = signature.cache_pairs(shape.layers)
    assert session.input_names == (
        signature.INPUT_IDS, signature.ATTENTION_MASK, *(past for past, _ in pairs),
    )  # fmt: skip
    assert session.optional_names == (signature.ALL_LOGITS,)
    assert session.output_names == (signature.LOGITS, *(present for _, present in pairs))
    assert session.input_dtype(signature.INPUT_IDS) == np.int64
    assert session.input_shape(signature.past_key(0)) == ("batch", shape.kv_heads, "past_capacity", shape.head_dim)
    assert session.output_shape(signature.LOGITS)[-1] == shape.vocab_size == VOCABULARY
    assert shape.head_dim % 16 == 0


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_has_the_structure_of_the_house(name: str, converted: Converter) -> None:
    folder = converted(name)
    graph = graph_of(folder)
    shape = folder.manifest.shape
    assert shape is not None
    attention = [node for node in graph if node.op_type == "GroupQueryAttention"]
    assert [node.name for node in attention] == [f"layers.{i}.attention" for i in range(shape.layers)]
    rows = folder.manifest.weights
    for index, node in enumerate(attention):
        packed = node.inputs[1] is None and node.inputs[2] is None
        assert packed == (name not in QK_NORM)
        roles = Counter(row.role for row in rows.values() if row.layer == index and row.role not in ("norm", "bias"))
        feed_forward = "up" if name == "gpt2" else "gate_up"
        assert roles == {"qkv": 1, "o": 1, feed_forward: 1, "down": 1}
    products = [node for node in graph if node.op_type in ("MatMul", "FusedMatMul")]
    assert len(products) == 4 * shape.layers + 1
    for node in products:
        weight = node.inputs[1]
        assert weight is not None
        assert weight.name in (f"{node.name}.weight", "embed_tokens.weight")


@pytest.mark.parametrize("name", DECODERS)
def test_a_tied_embedding_is_stored_once(name: str, converted: Converter) -> None:
    folder = converted(name)
    head = folder.manifest.weights["lm_head.weight"]
    node = next(node for node in graph_of(folder) if node.name == "lm_head")
    hidden = folder.manifest.shape.hidden_size  # type: ignore[union-attr]
    assert head.shape == (hidden, VOCABULARY)
    if name in TIED:
        assert (head.bytes, head.shared_with) == (0, "embed_tokens.weight")
        assert (node.op_type, node.attributes["transB"].as_int()) == ("FusedMatMul", 1)
    else:
        assert (head.bytes, head.shared_with) == (4 * hidden * VOCABULARY, None)
        assert node.op_type == "MatMul"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_weight_table_is_the_graphs(name: str, converted: Converter) -> None:
    folder = converted(name)
    graph = graph_of(folder)
    rows = {key: row for key, row in folder.manifest.weights.items() if row.shared_with is None}
    stored = {
        key: value.const_value
        for key, value in graph.initializers.items()
        if not key.startswith("const.") and key != signature.ALL_LOGITS
    }
    assert set(rows) == set(stored)
    for key, row in rows.items():
        tensor = stored[key]
        assert tensor is not None
        assert (row.shape, row.bytes, row.format) == (tuple(tensor.shape), tensor.nbytes, "fp32")
        assert row.role != "other"
    assert sum(row.bytes for row in rows.values()) <= folder.weight_bytes
    assert not graph.metadata_props


@pytest.mark.parametrize("name", [*DECODERS, "qwen3_narrow"])
def test_a_ragged_batch_equals_its_rows_alone(name: str, converted: Converter) -> None:
    folder = converted(name)
    session = GraphSession.open(folder.graph)
    rng = np.random.default_rng(1)
    prompts = [rng.integers(3, VOCABULARY, length).tolist() for length in (21, 5, 30)]
    longest = max(map(len, prompts))
    padded = [prompt + [0] * (longest - len(prompt)) for prompt in prompts]
    lengths = [len(prompt) for prompt in prompts]
    logits, *caches = step(session, folder, padded, lengths, None)
    alone = [step(session, folder, [prompt], [len(prompt)], None) for prompt in prompts]
    for row, (single, *_) in enumerate(alone):
        np.testing.assert_allclose(logits[row], single[0], atol=2e-5)
    # The next token of every row, at its own place in one cache of the batch.
    room = [np.concatenate([cache, np.full_like(cache[:, :, :4], np.nan)], axis=2) for cache in caches]
    following = [[7], [9], [11]]
    together, *_ = step(session, folder, following, [length + 1 for length in lengths], room)
    for row, (_, *own) in enumerate(alone):
        single, *_ = step(session, folder, [following[row]], [lengths[row] + 1], own)
        np.testing.assert_allclose(together[row], single[0], atol=2e-5)


@pytest.mark.parametrize("name", DECODERS)
def test_logits_are_of_the_last_token_unless_all_are_asked_for(name: str, converted: Converter) -> None:
    folder = converted(name)
    session = GraphSession.open(folder.graph)
    ids, lengths = [[5, 6, 7, 8], [9, 10, 0, 0]], [4, 2]
    last, *caches = step(session, folder, ids, lengths, None)
    every, *all_caches = step(session, folder, ids, lengths, None, all_logits=np.array(True))
    assert last.shape == (2, 1, VOCABULARY)
    assert every.shape == (2, 4, VOCABULARY)
    np.testing.assert_allclose(last[0, 0], every[0, 3], atol=1e-5)
    np.testing.assert_allclose(last[1, 0], every[1, 1], atol=1e-5)
    for one, two in zip(caches, all_caches, strict=True):
        np.testing.assert_allclose(one[0], two[0], atol=1e-6)


def test_an_encoder_has_the_signature_of_the_house(converted: Converter) -> None:
    folder = converted("bert")
    session = GraphSession.open(folder.graph)
    assert session.input_names == (signature.INPUT_IDS, signature.ATTENTION_MASK, signature.TOKEN_TYPE_IDS)
    assert session.output_names == (signature.LAST_HIDDEN_STATE,)
    assert session.output_shape(signature.LAST_HIDDEN_STATE) == ("batch", "sequence", 64)
    roles = Counter(row.role for row in folder.manifest.weights.values() if row.layer == 0)
    assert roles == {"qkv": 1, "o": 1, "up": 1, "down": 1, "norm": 4, "bias": 4}
    assert folder.manifest.task == "feature-extraction"


def test_what_travels_and_what_the_manifest_knows(converted: Converter) -> None:
    folder = converted("gemma3")
    manifest = folder.manifest
    assert {"model.onnx", "model.onnx.data", "config.json", "tokenizer.json"} <= set(manifest.files)
    assert MANIFEST_NAME not in manifest.files
    assert manifest.exporter == EXPORTER
    assert (manifest.source.kind, manifest.source.name) == ("folder", "gemma3")
    assert manifest.tokens.eos == (2,)
    assert (manifest.tokens.bos, manifest.tokens.pad) == (1, 0)
    folder.check_hashes()
    assert sorted(p.name for p in folder.path.parent.iterdir()) == [folder.path.name]
