"""Scales of an int8 cache: what was seen fits, what was not is clipped, nothing is divided by zero."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from aiasst.quantize.cache.scales import (
    LEVELS,
    Floats,
    Rotation,
    channel_scales,
    largest_magnitudes,
    shared_by_pairs,
)

HEADS, HEAD_DIM = 2, 8
finite = st.floats(-(2.0**100), 2.0**100, width=32)
caches = arrays.arrays(np.float32, st.tuples(*map(st.just, (2, HEADS, 3, HEAD_DIM))), elements=finite)
rotations = st.builds(Rotation, st.sampled_from([0, 2, 4, 8]), st.booleans())


def _rounded(cache: Floats, scales: Floats) -> Floats:
    """As the kernel does it."""
    rounded: Floats = np.clip(np.rint(cache.astype(np.float64) / scales), -LEVELS - 1, LEVELS) * scales
    return rounded


@given(caches)
def test_what_was_seen_is_off_by_half_a_step_at_most(cache: Floats) -> None:
    scales = channel_scales(largest_magnitudes(cache))
    assert scales.shape == (1, HEADS, 1, HEAD_DIM)
    assert scales.dtype == np.float32
    assert np.isfinite(scales).all()
    assert (scales >= np.finfo(np.float32).tiny).all()
    assert (np.abs(_rounded(cache, scales) - cache) <= 0.501 * scales).all()


@given(caches, st.floats(1, 1e6))
def test_what_is_larger_is_clipped_and_keeps_its_sign(cache: Floats, times: float) -> None:
    scales = channel_scales(largest_magnitudes(cache))
    larger = _rounded((cache * times).astype(np.float64), scales)  # type: ignore[arg-type]
    assert (np.abs(larger) <= (LEVELS + 1) * scales).all()
    assert (larger * cache >= 0).all()


@given(caches, st.permutations(range(2)), st.permutations(range(3)))
def test_neither_order_nor_batches_matter(cache: Floats, rows: list[int], tokens: list[int]) -> None:
    whole = largest_magnitudes(cache)
    assert np.array_equal(whole, largest_magnitudes(cache[rows][:, :, tokens]))
    assert np.array_equal(whole, np.maximum(largest_magnitudes(cache[:1]), largest_magnitudes(cache[1:])))


@given(caches, rotations)
def test_pairs_share_the_larger_magnitude(cache: Floats, rotation: Rotation) -> None:
    seen = largest_magnitudes(cache)
    shared = shared_by_pairs(seen, rotation)
    partners = rotation.partners(HEAD_DIM)
    assert np.array_equal(partners[partners], np.arange(HEAD_DIM)), "each is the partner of its partner"
    assert np.array_equal(shared, shared[:, partners])
    assert (shared >= seen).all()
    assert np.array_equal(shared[:, rotation.channels :], seen[:, rotation.channels :])


def test_partners_are_those_that_rotary_embedding_turns() -> None:
    assert Rotation(8, interleaved=False).partners(8).tolist() == [4, 5, 6, 7, 0, 1, 2, 3]
    assert Rotation(4, interleaved=False).partners(8).tolist() == [2, 3, 0, 1, 4, 5, 6, 7]
    assert Rotation(4, interleaved=True).partners(8).tolist() == [1, 0, 3, 2, 4, 5, 6, 7]


@given(arrays.arrays(np.float32, (HEADS, HEAD_DIM), elements=st.floats(2.0**-100, 2.0**100, width=32)))
def test_narrow_channels_have_headroom_and_the_widest_has_none(magnitudes: Floats) -> None:
    headroom = channel_scales(magnitudes)[0, :, 0].astype(np.float64) * LEVELS / magnitudes
    assert (headroom > 1 - 1e-6).all()
    assert (headroom < 2 + 1e-6).all()
    order = np.argsort(magnitudes, axis=None)
    assert (np.diff(headroom.ravel()[order]) < 1e-6).all(), "the narrower, the more"
    assert headroom.ravel()[order[-1]] == pytest.approx(1)


def test_a_dead_channel_can_hold_what_the_others_hold() -> None:
    magnitudes = np.array([[0.0, 2.54], [1.27, 0.0]], np.float32)
    scales = channel_scales(magnitudes)[0, :, 0]
    np.testing.assert_allclose(scales, [[0.02, 0.02], [0.01 * 2**0.3, 0.02]], rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1e-45])
def test_a_dead_cache_has_scales_all_the_same(value: float) -> None:
    scales = channel_scales(np.full((1, 4), value, np.float32))
    assert (scales > 0).all()
    assert np.isfinite(1 / scales).all()
