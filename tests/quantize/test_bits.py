from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiasst.quantize.bits import pack_bits, unpack_bits


@given(bits=st.sampled_from([2, 4, 8]), rows=st.integers(1, 5), count=st.integers(1, 40), seed=st.integers(0, 99))
def test_unpacking_gives_back_what_was_packed(bits: int, rows: int, count: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 1 << bits, (rows, count)).astype(np.uint8)
    packed = pack_bits(values, bits)
    assert packed.shape == (rows, -(-count * bits // 8))
    np.testing.assert_array_equal(unpack_bits(packed, bits, count), values)


@pytest.mark.parametrize(("bits", "byte"), [(4, 0x21), (2, 0b11100100)])
def test_the_first_value_is_in_the_lowest_bits(bits: int, byte: int) -> None:
    values = [1, 2] if bits == 4 else [0, 1, 2, 3]
    assert pack_bits(np.array([values], dtype=np.uint8), bits).tolist() == [[byte]]
