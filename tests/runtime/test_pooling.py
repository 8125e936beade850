"""Pooling of hidden states: the formulas, and that padding counts for nothing."""

from __future__ import annotations

import numpy as np
import pytest

from aiasst.runtime.pooling import POOLINGS, normalized, pool

HIDDEN = np.array([[1, 2], [3, -4], [5, 0]], np.float32)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("mean", [3, -2 / 3]),
        ("cls", [1, 2]),
        ("max", [5, 2]),
        ("lasttoken", [5, 0]),
        ("mean_sqrt_len_tokens", [9 / 3**0.5, -2 / 3**0.5]),
        ("weightedmean", [(1 + 6 + 15) / 6, (2 - 8) / 6]),
    ],
)
def test_poolings(name: str, wanted: list[float]) -> None:
    padded = np.concatenate([HIDDEN, np.full((4, 2), 1e6, np.float32)])
    mask = np.array([[1, 1, 1, 0, 0, 0, 0]], np.float32)
    assert POOLINGS[name](padded[None], mask)[0] == pytest.approx(wanted)


@pytest.mark.parametrize("name", POOLINGS)
def test_a_prompt_before_the_text_may_count_for_nothing(name: str) -> None:
    padded = np.concatenate([np.full((2, 2), 1e6, np.float32), HIDDEN, np.full((4, 2), 1e6, np.float32)])
    mask = np.array([[0, 0, 1, 1, 1, 0, 0, 0, 0]], np.float32)
    weights = np.array([3, 4, 5], np.float32)  # later tokens weigh as much as they do behind the prompt
    wanted = (
        weights @ HIDDEN / weights.sum() if name == "weightedmean" else POOLINGS[name](HIDDEN[None], mask[:, 2:5])[0]
    )
    assert POOLINGS[name](padded[None], mask)[0] == pytest.approx(wanted)


def test_several_poolings_stand_side_by_side() -> None:
    found = pool(HIDDEN[None], np.ones((1, 3), np.float32), ("cls", "max"))
    assert found.tolist() == [[1, 2, 5, 2]]


def test_normalized() -> None:
    assert normalized(np.array([[3, 4], [0, 0]], np.float32)) == pytest.approx(np.array([[0.6, 0.8], [0, 0]]))
