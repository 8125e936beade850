"""Packed integers come out as they went in, however many bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiasst.convert.imports.words import BITS, integers, plus_one, words_of
from tests.convert.imports.packers import minus_one, words


@given(st.sampled_from(BITS), st.integers(1, 5), st.integers(1, 70), st.randoms(use_true_random=False))
def test_unpacking_inverts_packing(bits: int, rows: int, count: int, random: object) -> None:
    values = np.random.default_rng(random.getrandbits(32)).integers(0, 1 << bits, (rows, count)).astype(np.uint8)  # type: ignore[attr-defined]
    packed = words(values, bits)
    assert packed.shape == (rows, words_of(count, bits))
    assert np.array_equal(integers(packed, bits, count), values)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_zero_points_survive_the_old_form_even_where_they_are_zero(bits: int) -> None:
    zeros = np.random.default_rng(0).integers(0, 1 << bits, (16, 64)).astype(np.uint8)
    assert (zeros == 0).any()
    packed = words(zeros, bits)
    assert np.array_equal(plus_one(minus_one(packed, zeros, bits), bits), packed)
