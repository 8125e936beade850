"""Widened heads: the layout's laws, and that rotating and multiplying widened heads gives what the true ones give."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from aiasst.convert.finish.heads import HeadLayout, layout_for


@st.composite
def heads(draw: st.DrawFn) -> tuple[int, int]:
    """(head size, rotary half): the rotary part is at most the head."""
    head_dim = draw(st.integers(1, 80)) * 2
    return head_dim, draw(st.integers(0, head_dim // 2))


def rotate(values: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Rotary embedding of one head: the first 2r entries, entry j with entry r + j."""
    half = len(cos)
    one, two, rest = values[:half], values[half : 2 * half], values[2 * half :]
    return np.concatenate([one * cos - two * sin, two * cos + one * sin, rest])


def widen(values: np.ndarray, layout: HeadLayout) -> np.ndarray:
    wide = np.zeros(layout.width)
    wide[layout.places] = values
    return wide


@given(heads())
def test_a_layout_is_what_the_operator_takes(size: tuple[int, int]) -> None:
    layout = layout_for(*size)
    assert layout.width % 16 == 0
    assert layout.rotary_half % 8 == 0
    assert 2 * layout.rotary_half <= layout.width
    assert len(set(layout.places.tolist())) == size[0]
    assert layout.places.max() < layout.width


@given(st.integers(1, 10), st.integers(0, 5))
def test_a_fitting_head_is_left_as_it_is(sixteens: int, eights: int) -> None:
    head_dim, half = 16 * sixteens, min(8 * eights, 8 * sixteens)
    layout = layout_for(head_dim, half)
    assert (layout.width, layout.rotary_half) == (head_dim, half)
    assert layout.places.tolist() == list(range(head_dim))


@given(heads(), st.integers(0, 2**32 - 1))
def test_scores_of_widened_heads_are_the_true_scores(size: tuple[int, int], seed: int) -> None:
    head_dim, half = size
    layout = layout_for(head_dim, half)
    rng = np.random.default_rng(seed)
    query, key, angle = rng.standard_normal(head_dim), rng.standard_normal(head_dim), rng.standard_normal(half)
    cos, sin = np.cos(angle), np.sin(angle)
    wide_cos = np.pad(cos, (0, layout.rotary_half - half), constant_values=1)
    wide_sin = np.pad(sin, (0, layout.rotary_half - half))
    turned = rotate(widen(query, layout), wide_cos, wide_sin)
    np.testing.assert_allclose(turned, widen(rotate(query, cos, sin), layout))
    np.testing.assert_allclose(turned @ widen(key, layout), rotate(query, cos, sin) @ key)


def test_interleaved_pairs_stay_beside_each_other() -> None:
    layout = layout_for(12, 4, interleaved=True)
    assert layout.places[:8].tolist() == list(range(8))
    assert layout.places[8:].tolist() == [16, 17, 18, 19]
    assert (layout.width, layout.rotary_half) == (32, 8)
