"""Two forms as one decoder: which runs when, and that one cache serves both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aiasst.errors import ArtifactError
from aiasst.runtime.pair import PairedSession
from aiasst.runtime.session import DecoderSession, GraphSession, SessionSettings
from tests.runtime.graphs import CONTEXT, HEAD_DIM, KV_HEADS, LAYERS, VOCABULARY, tiny_decoder

CROSSOVER = 6


def opened(path: Path, dtype: type = np.float32, seed: int = 0) -> DecoderSession:
    graph = GraphSession.open(tiny_decoder(path, dtype, seed=seed), SessionSettings(threads=1, rests=True))
    return DecoderSession(graph, context_length=CONTEXT, weight_bytes=100 + seed)


def new_cache(rows: int) -> list[np.ndarray]:
    return [np.full((rows, KV_HEADS, 32, HEAD_DIM), np.nan, np.float32) for _ in range(2 * LAYERS)]


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> tuple[DecoderSession, DecoderSession]:
    """Two models of one shape: other weights, so that it shows which of them ran."""
    folder = tmp_path_factory.mktemp("forms")
    return opened(folder / "first.onnx"), opened(folder / "twin.onnx", seed=1)


@pytest.fixture(scope="module")
def pair(forms: tuple[DecoderSession, DecoderSession]) -> PairedSession:
    return PairedSession(*forms, from_rows=CROSSOVER)


def test_what_a_pair_tells(pair: PairedSession) -> None:
    assert (pair.layers, pair.kv_heads, pair.head_dim) == (LAYERS, KV_HEADS, HEAD_DIM)
    assert (pair.vocab_size, pair.context_length, pair.cache_dtype) == (VOCABULARY, CONTEXT, np.float32)
    assert pair.weight_bytes == 100 + 101


@pytest.mark.parametrize("tokens", [1, CROSSOVER - 1, CROSSOVER, 20])
@pytest.mark.parametrize("all_logits", [False, True])
def test_new_tokens_choose_the_form(pair: PairedSession, tokens: int, all_logits: bool) -> None:
    ids = np.arange(tokens)[None] + 3
    got, wanted = new_cache(1), new_cache(1)
    form = pair.twin if tokens >= CROSSOVER and not all_logits else pair.first
    expected = form.step(ids, [tokens], wanted, all_logits).copy()
    np.testing.assert_array_equal(pair.step(ids, [tokens], got, all_logits), expected)
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("rows", [1, CROSSOVER - 1, CROSSOVER, 8])
def test_sequences_choose_the_form(pair: PairedSession, rows: int) -> None:
    ids = np.arange(rows)[:, None] + 3
    form = pair.twin if rows >= CROSSOVER else pair.first
    expected = form.step(ids, [1] * rows, new_cache(rows)).copy()
    np.testing.assert_array_equal(pair.step(ids, [1] * rows, new_cache(rows)), expected)


def test_the_first_form_goes_on_where_the_twin_stopped(pair: PairedSession) -> None:
    """As composed by hand: the twin reads a prompt into the cache, the first form writes behind it, the twin again."""
    got, wanted = new_cache(1), new_cache(1)
    tokens = np.arange(3, 23)[None]
    for begin, end in ((0, 10), (10, 11), (11, 13), (13, 20)):
        form = pair.twin if end - begin >= CROSSOVER else pair.first
        expected = form.step(tokens[:, begin:end], [end], wanted).copy()
        np.testing.assert_array_equal(pair.step(tokens[:, begin:end], [end], got), expected)
        np.testing.assert_array_equal([array[:, :, :end] for array in got], [array[:, :, :end] for array in wanted])
    assert not np.isnan([array[:, :, :20] for array in got]).any()


def test_forms_of_other_models_are_refused(forms: tuple[DecoderSession, DecoderSession], tmp_path: Path) -> None:
    halves = opened(tmp_path / "half.onnx", np.float16)
    with pytest.raises(ArtifactError, match="not two forms of one model") as failure:
        PairedSession(forms[0], halves, from_rows=12)
    assert "--twin" in failure.value.hint
    with pytest.raises(ValueError, match="a row at least"):
        PairedSession(*forms, from_rows=0)
