"""Perplexity, KL divergence and agreement: against formulas, against one run over all, against themselves."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from aiasst.errors import UsageError
from aiasst.evaluate.perplexity import (
    PIECE,
    DecoderScorer,
    compare,
    kl_divergence,
    log_softmax,
    perplexity,
    same_top1,
    token_losses,
)
from aiasst.progress import Progress
from aiasst.runtime.session import DecoderSession, GraphSession, SessionSettings
from tests.runtime.graphs import CONTEXT, HEAD_DIM, KV_HEADS, LAYERS, VOCABULARY, tiny_decoder

LOGITS = hnp.arrays(np.float32, (3, 7), elements=st.floats(-40, 40, width=32))
IDS = np.random.default_rng(1).integers(0, VOCABULARY, 300)


@pytest.fixture(scope="module")
def scorers(tmp_path_factory: pytest.TempPathFactory) -> list[DecoderScorer]:
    folder = tmp_path_factory.mktemp("tiny")
    graphs = [GraphSession.open(tiny_decoder(folder / f"{s}.onnx", seed=s), SessionSettings(threads=1)) for s in (0, 1)]
    return [DecoderScorer(DecoderSession(graph, context_length=CONTEXT)) for graph in graphs]


@given(first=LOGITS, second=LOGITS)
def test_kl_is_zero_with_itself_and_never_negative(first: np.ndarray, second: np.ndarray) -> None:
    assert kl_divergence(first, first) == pytest.approx(np.zeros(3))
    assert kl_divergence(first, second).min() >= -1e-9
    assert kl_divergence(first, first + 3) == pytest.approx(np.zeros(3), abs=1e-4)


def test_kl_of_two_coins() -> None:
    fair, bent = np.log([[0.5, 0.5]]).astype(np.float32), np.log([[0.9, 0.1]]).astype(np.float32)
    assert kl_divergence(fair, bent)[0] == pytest.approx(
        0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1), rel=1e-5
    )


@given(logits=LOGITS)
def test_losses_are_those_of_normalised_probabilities(logits: np.ndarray) -> None:
    assert np.exp(log_softmax(logits)).sum(-1) == pytest.approx(np.ones(3))
    assert token_losses(logits, np.array([0, 6, 2]))[1] == pytest.approx(-log_softmax(logits)[1, 6])


def test_a_model_that_knows_nothing_has_the_vocabularys_perplexity() -> None:
    assert math.exp(token_losses(np.zeros((5, 40), np.float32), np.arange(5)).mean()) == pytest.approx(40)


def test_top1() -> None:
    first = np.array([[1, 2], [3, 1]], np.float32)
    assert same_top1(first, np.array([[0, 9], [0, 1]], np.float32)).tolist() == [True, False]


@pytest.mark.parametrize("window", [2, 3, 64, 128])
def test_the_second_half_of_each_window_is_scored(scorers: list[DecoderScorer], window: int) -> None:
    scorer = scorers[0]
    wanted: list[np.ndarray] = []
    hits = 0
    for begin in range(0, len(IDS) - window + 1, window):
        ids = IDS[begin : begin + window]
        cache = [np.zeros((1, KV_HEADS, window, HEAD_DIM), np.float32) for _ in range(2 * LAYERS)]
        logits = scorer.session.step(ids[None], [window], cache, all_logits=True)[0]
        wanted.append(token_losses(logits[window // 2 - 1 : -1], ids[window // 2 :]))
        hits += int((logits[window // 2 - 1 : -1].argmax(-1) == ids[window // 2 :]).sum())
    result = perplexity(scorer, IDS, window=window)
    assert result.tokens == len(wanted) * (window - window // 2)
    assert result.nats_per_token == pytest.approx(np.concatenate(wanted).mean(), rel=1e-5)
    assert result.value == pytest.approx(math.exp(result.nats_per_token))
    assert result.accuracy == hits / result.tokens


def test_pieces_cover_each_target_once(scorers: list[DecoderScorer]) -> None:
    targets = np.concatenate([targets for _, targets in scorers[0].score(IDS[:128])])
    assert targets.tolist() == IDS[64:128].tolist()


def test_a_model_compared_with_itself_and_with_another(scorers: list[DecoderScorer]) -> None:
    first, second = scorers
    events: list[Progress] = []
    same = compare(first, first, IDS, window=64, windows=2, progress=events.append)
    assert (same.mean_kl, same.top1_agreement) == (pytest.approx(0, abs=1e-9), 1.0)
    assert same.reference == same.other == perplexity(first, IDS, window=64, windows=2)
    assert [(event.done, event.total) for event in events] == [(0, 2), (1, 2), (2, 2)]
    other = compare(first, second, IDS, window=64)
    assert other.mean_kl > 0.01 and other.max_kl >= other.mean_kl
    assert other.mean_kl < other.kl_p999 <= other.max_kl
    assert other.top1_agreement < 0.9
    assert other.tokens == other.other.tokens == 128
    assert other.other == perplexity(second, IDS, window=64)


def test_a_text_or_window_of_the_wrong_length_is_refused(scorers: list[DecoderScorer]) -> None:
    with pytest.raises(UsageError, match="50 tokens, one window needs 64"):
        perplexity(scorers[0], IDS[:50], window=64)
    with pytest.raises(UsageError, match="context of 128"):
        perplexity(scorers[0], IDS, window=256)
    with pytest.raises(UsageError, match="nothing to score"):
        perplexity(scorers[0], IDS, window=1)


class Made:
    """A scorer of logits made up beforehand: [windows, tokens, vocabulary]."""

    def __init__(self, logits: np.ndarray) -> None:
        self._logits = iter(logits.astype(np.float32))

    def score(self, window: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        logits, targets = next(self._logits), window[len(window) // 2 :]
        for start in range(0, len(targets), PIECE):
            yield logits[start : start + PIECE], targets[start : start + PIECE]


def made_logits(right: np.ndarray, targets: np.ndarray, vocabulary: int) -> np.ndarray:
    """Logits that are right where `right` says so, and sure of the next id where it does not."""
    logits = np.zeros((*targets.shape, vocabulary))
    np.put_along_axis(logits, np.where(right, targets, (targets + 1) % vocabulary)[..., None], 5.0, -1)
    return logits


@pytest.mark.parametrize("vocabulary", [9, 50_000], ids=["one slice", "several slices"])
def test_accuracy_retained_and_the_worst_tokens(vocabulary: int) -> None:
    """1 token in 200 goes wrong: the mean hardly moves, the 99.9th percentile is that token."""
    ids = np.random.default_rng(0).integers(0, vocabulary, 400)
    targets = ids[200:][None]
    before = np.arange(200)[None] % 2 == 0
    after = before.copy()
    after[0, 10] = False
    found = compare(
        Made(made_logits(before, targets, vocabulary)), Made(made_logits(after, targets, vocabulary)), ids, window=400
    )
    assert (found.reference.accuracy, found.other.accuracy) == (0.5, 0.495)
    assert found.retained_percent == pytest.approx(99)
    assert found.top1_agreement == 0.995
    assert found.mean_kl == pytest.approx(found.max_kl / 200)
    assert found.kl_p999 == pytest.approx(np.quantile([0] * 199 + [found.max_kl], 0.999))


def test_a_reference_that_is_never_right_retains_nothing_to_speak_of() -> None:
    ids = np.arange(8)
    logits = made_logits(np.zeros((1, 4), bool), ids[None, 4:], 9)
    assert compare(Made(logits), Made(logits), ids, window=8).retained_percent is None


def test_other_vocabularies_cannot_be_compared() -> None:
    ids = np.arange(8)
    with pytest.raises(UsageError, match="vocabularies of 9 and 10 tokens"):
        compare(Made(np.zeros((1, 4, 9))), Made(np.zeros((1, 4, 10))), ids, window=8)
