"""Ranges of inputs: what rounding into them keeps, that clipping is chosen where it pays, and outliers are divided away."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiasst.quantize.ranges import Columns, InputRange, RangeFinder
from tests.quantize import graphs

FINITE = st.floats(0, 1e6, width=32)


def _columns(weight: np.ndarray) -> Columns:
    """Of one weight [N, K]."""
    return Columns(np.square(weight).sum(axis=0), np.abs(weight).max(axis=0), weight, len(weight))


def _finder(*batches: np.ndarray) -> RangeFinder:
    finder = RangeFinder(batches[0].shape[1])
    for batch in batches:
        finder.add(batch)
    return finder


@given(low=FINITE, high=FINITE, share=st.floats(0, 1))
def test_what_lies_inside_moves_by_half_a_step_and_zero_not_at_all(low: float, high: float, share: float) -> None:
    found = InputRange(-low, high)
    x = np.array([0, share * high - (1 - share) * low], np.float32)
    rounded = found.rounded(x)
    assert rounded[0] == 0
    # The zero point is whole, so that either end may lie half a step off.
    assert abs(rounded[1] - x[1]) <= 1.01 * found.scale + 1e-6 * abs(x[1])
    assert 0 <= found.zero_point <= 255


def test_outside_it_is_clipped() -> None:
    assert InputRange(-1.0, 1.0).rounded(np.array([-9, 9], np.float32)) == pytest.approx([-1, 1], abs=0.01)


def test_one_wild_number_does_not_cost_the_others_their_precision() -> None:
    x = graphs.random(30000, 16)
    x[0, 3] = 30
    found = _finder(x[:900], x[900:]).find(_columns(graphs.random(8, 16, seed=1)))
    assert 3 < found.high < 20
    assert -6 < found.low < -2.5


def test_a_channel_that_nobody_reads_does_not_count() -> None:
    x, weight = graphs.random(500, 16), graphs.random(8, 16, seed=1)
    x[:, 3] *= 10
    weight[:, 3] = 0
    assert _finder(x).find(_columns(weight)).high < 8


def test_scales_are_divided_by_first() -> None:
    x, weight = graphs.random(500, 16), graphs.random(8, 16, seed=1)
    scales = np.linspace(0.5, 4, 16, dtype=np.float32)
    scaled, plain = _finder(x * scales).find(_columns(weight), scales), _finder(x).find(_columns(weight))
    assert (scaled.low, scaled.high) == pytest.approx((plain.low, plain.high), rel=1e-5)


def test_channels_of_outliers_are_divided_away_and_even_ones_left_alone() -> None:
    x, weight = graphs.random(1000, 64), graphs.random(32, 64, seed=1)
    assert _finder(x).find_smoothed(_columns(weight)).divisors is None
    x[:, 7] *= 40
    finder = _finder(x)
    smooth, plain = finder.find_smoothed(_columns(weight)), finder.find(_columns(weight))
    assert smooth.divisors is not None
    assert smooth.divisors.argmax() == 7
    assert np.log(smooth.divisors).mean() == pytest.approx(0, abs=1e-4)
    exact = x @ weight.T
    error = np.linalg.norm((smooth.rounded(x / smooth.divisors) * smooth.divisors) @ weight.T - exact)
    assert error < 0.5 * np.linalg.norm(plain.rounded(x) @ weight.T - exact)


def test_more_rows_than_are_kept_count_for_the_extremes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiasst.quantize.ranges._KEPT", 64)
    batches = [np.full((5, 4), value, np.float32) for value in range(40)]
    finder = _finder(*batches)
    assert len(finder._sample) <= 16
    assert finder.find(_columns(np.ones((2, 4), np.float32))).high > 30
