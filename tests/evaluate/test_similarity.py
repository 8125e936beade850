"""Vectors of texts: pooled as a checkpoint's files say, compared by their cosine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aiasst.artifacts.encoding import Encoding
from aiasst.artifacts.model_folder import ModelFolder
from aiasst.evaluate.similarity import TextEncoder, cosines
from aiasst.runtime.encoder import EncoderSession
from aiasst.tokenizer import Tokenizer
from tests import checkpoints


def test_cosines() -> None:
    zero, up, right = np.zeros(2, np.float32), np.array([0, 2], np.float32), np.array([3, 0], np.float32)
    assert cosines([up, up, up, zero, up], [up, right, -up, zero, zero]).tolist() == [1, 0, -1, 1, 0]


class Echo:
    """A graph whose hidden states are the ids themselves."""

    input_names = ("input_ids", "attention_mask")
    output_names = ("pooler_output", "last_hidden_state")
    runs = 0

    def run(self, feeds: dict[str, np.ndarray], outputs: list[str]) -> list[np.ndarray]:
        assert (sorted(feeds), outputs) == (["attention_mask", "input_ids"], ["last_hidden_state"])
        self.runs += 1
        return [np.stack([feeds["input_ids"], feeds["attention_mask"]], -1).astype(np.float16)]


def test_a_long_text_is_cut_and_keeps_its_end(tmp_path: Path) -> None:
    checkpoints.write_tokenizer(tmp_path, encoder=True)
    graph = Echo()
    encoding = Encoding(pooling=("cls", "lasttoken"), normalize=True, max_tokens=6)
    session = EncoderSession(graph, context_length=100)  # type: ignore[arg-type]
    encoder = TextEncoder(session, Tokenizer.load(tmp_path), encoding)
    long, short = encoder.encode("a long sentence"), encoder.encode("a")
    assert (len(long.ids), len(short.ids)) == (6, 3)
    assert long.ids[[0, -1]].tolist() == [checkpoints.BOS, checkpoints.EOS]
    first, second, third = encoder.vectors([long, short, long])
    assert first is third
    assert graph.runs == 2
    assert first == pytest.approx(np.array([1, 1, 2, 1]) / 7**0.5, rel=1e-6)
    assert second.dtype == np.float32


def test_minilm_finds_the_sentence_of_the_same_meaning(minilm: tuple[ModelFolder, ModelFolder]) -> None:
    encoder = TextEncoder.open(minilm[0])
    assert encoder.encoding == Encoding(pooling=("mean",), normalize=True, max_tokens=256)
    texts = ("a cat sleeps on the sofa", "the kitten is napping on the couch", "interest rates rose last week")
    cat, kitten, rates = encoder.vectors([encoder.encode(text) for text in texts])
    assert np.linalg.norm(cat) == pytest.approx(1)
    assert cat @ kitten > 0.5 > cat @ rates
