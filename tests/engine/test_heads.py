"""What logits and hidden states become."""

from __future__ import annotations

import numpy as np
import pytest

from aiasst.artifacts.encoding import Encoding
from aiasst.engine import heads

LOGITS = np.log(np.array([[1, 3, 6], [8, 1, 1]], np.float32))


def test_the_likeliest_label_comes_first() -> None:
    first, second = heads.labels(LOGITS, Encoding(labels=("a", "b", "c")), None)
    assert [(each.label, round(each.score, 6)) for each in first.labels] == [("c", 0.6), ("b", 0.3), ("a", 0.1)]
    assert [each.label for each in second.labels] == ["a", "b", "c"]
    assert len(heads.labels(LOGITS, Encoding(), 1)[0].labels) == 1
    assert heads.labels(LOGITS, Encoding(labels=("a", "b")), 1)[0].labels[0].label == "LABEL_2"


@pytest.mark.parametrize(("activation", "wanted"), [("identity", 1.5), ("sigmoid", 1 / (1 + np.exp(-1.5)))])
def test_relevance(activation: str, wanted: float) -> None:
    encoding = Encoding.parse({"activation": activation}, "test")
    assert heads.relevance(np.array([[1.5]], np.float32), encoding)[0].score == pytest.approx(wanted)


def test_large_logits_stay_numbers() -> None:
    large = np.array([[1e4, -1e4]], np.float32)
    for activation in ("softmax", "sigmoid"):
        assert heads.activated(large, activation).tolist() == [[1, 0]]  # type: ignore[arg-type]


def test_labels_of_tokens_leave_special_tokens_out() -> None:
    offsets, special = [(0, 0), (0, 3), (4, 9)], [True, False, False]
    logits = np.array([[9, 0], [0, 2], [3, 0]], np.float32)
    found = heads.token_labels(logits, offsets, special, "Ada wrote", Encoding(labels=("O", "PER"))).tokens
    assert [(token.text, token.label, token.start) for token in found] == [("Ada", "PER", 0), ("wrote", "O", 4)]


def test_fills_name_tokens() -> None:
    found = heads.fills(LOGITS[0], lambda token: "xyz"[token], 2)
    assert [each.label for each in found] == ["z", "y"]
