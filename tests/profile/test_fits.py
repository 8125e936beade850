"""Costs behind measured points: what was put in comes out, and nothing costs less than nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiasst.artifacts.device import AttentionPoint, BandwidthPoint, Costs, OverheadPoint
from aiasst.profile import fits

coefficients = st.lists(st.floats(1e-3, 1e3), min_size=3, max_size=3)
CASES = ((1, 1, 64, 16), (1, 1, 256, 16), (8, 1, 16, 16), (8, 1, 64, 16), (1, 1, 64, 4), (8, 1, 64, 4))


def attention_point(
    rows: int, new: int, past: int, heads: int, microseconds: float, noise: float = 0.0
) -> AttentionPoint:
    return AttentionPoint(
        cache="float32", rows=rows, new_tokens=new, past=past, heads=heads, kv_heads=heads // 2, head_dim=64, threads=2,
        microseconds=microseconds, noise=noise,
    )  # fmt: skip


def law_points(law: fits.AttentionLaw) -> list[AttentionPoint]:
    points = []
    for case in CASES:
        bare = attention_point(*case, microseconds=1.0)
        seconds = law.seconds(1, case[0] * case[1] * case[3], fits.multiplications(bare))
        points.append(attention_point(*case, microseconds=seconds * 1e6))
    return points


@given(coefficients)
def test_least_squares_finds_what_the_points_were_made_of(wanted: list[float]) -> None:
    terms = np.array([[1, 1, 1], [1, 8, 2], [1, 3, 40], [1, 9, 5]], dtype=float)
    assert fits.least_squares(terms, terms @ wanted) == pytest.approx(wanted, rel=1e-6)


@given(st.lists(st.floats(0.1, 10), min_size=4, max_size=4))
def test_no_coefficient_is_negative(seconds: list[float]) -> None:
    terms = np.array([[1, 1, 1], [1, 8, 2], [1, 3, 40], [1, 9, 5]], dtype=float)
    found = fits.least_squares(terms, np.array(seconds))
    assert (found >= 0).all()
    assert found.any()


def test_attention_has_a_cost_whatever_it_attends_to() -> None:
    law = fits.AttentionLaw(node=3e-6, head=0.3e-6, multiplication=6e-11)
    found = fits.attention_law(Costs(attention=tuple(law_points(law))), 2**25, decoding=True)
    assert found is not None
    assert (found.node, found.head, found.multiplication) == pytest.approx((3e-6, 0.3e-6, 6e-11), rel=0.01)
    assert fits.attention_law(Costs(), 2**25, decoding=True) is None
    assert fits.attention_law(Costs(attention=tuple(law_points(law))), 2**25, decoding=False) is None


def test_a_noisy_point_of_attention_is_left_out() -> None:
    law = fits.AttentionLaw(node=3e-6, head=0.3e-6, multiplication=6e-11)
    noisy = attention_point(1, 1, 1024, 16, microseconds=1e6, noise=0.5)
    found = fits.attention_law(Costs(attention=(*law_points(law), noisy)), 2**25, decoding=True)
    assert found is not None
    assert found.multiplication == pytest.approx(6e-11, rel=0.01)


def test_reading_is_taken_out_of_what_does_not_fit_the_cache() -> None:
    points = tuple(law_points(fits.AttentionLaw(3e-6, 0.3e-6, 6e-11)))
    bandwidth = (BandwidthPoint(threads=2, gigabytes_per_second=30, noise=0),)
    within, beyond = (
        fits.attention_law(Costs(attention=points, bandwidth=bandwidth), size, decoding=True) for size in (2**25, 2**10)
    )
    assert within is not None
    assert beyond is not None
    assert beyond.multiplication < within.multiplication


def test_a_step_costs_something_for_itself_for_rows_and_for_scores() -> None:
    points = [
        OverheadPoint(
            kind="step", rows=rows, vocabulary=size, threads=2, microseconds=50 + 5 * rows + 1e-4 * rows * size, noise=0
        )
        for rows in (1, 8)
        for size in (4096, 65536)
    ]
    law = fits.step_law(points)
    assert law is not None
    assert (law.step, law.row, law.score) == pytest.approx((50e-6, 5e-6, 1e-10), rel=1e-6)
    assert fits.step_law(points[:2]) is None


def test_a_small_node_by_the_numbers_it_goes_over() -> None:
    measured = {1: 1.0, 8: 5.0, 256: 100.0}
    points = [
        OverheadPoint(kind="node", rows=rows, vocabulary=0, threads=2, microseconds=us, noise=0)
        for rows, us in measured.items()
    ]
    node = fits.node_law(points)
    assert node is not None
    for rows, us in measured.items():
        assert node(rows * fits.NODE_WIDTH) == pytest.approx(us / 1e6)
    assert node(0) == pytest.approx(1e-6)
    assert node(512 * fits.NODE_WIDTH) == pytest.approx(200e-6)
    assert fits.node_law(points[:1]) is None
