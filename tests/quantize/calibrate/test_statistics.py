from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aiasst.quantize.calibrate.statistics import Accumulator


def _rows(count: int, width: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    # Channels of very different size, and of one sign, as activations have them.
    return (generator.standard_normal((count, width)) * 10.0 ** generator.integers(-2, 3, width) + 0.5).astype("f")


@settings(max_examples=30, deadline=None)
@given(pieces=st.lists(st.integers(1, 5000), min_size=1, max_size=4), width=st.integers(1, 40), seed=st.integers(0, 99))
def test_pieces_add_up_to_the_whole(pieces: list[int], width: int, seed: int) -> None:
    x, original = _rows(sum(pieces), width, seed), _rows(sum(pieces), width, seed + 1)
    seen = Accumulator(width, cross=True, device=torch.device("cpu"))
    start = 0
    for piece in pieces:
        seen.add(x[start : start + piece], original[start : start + piece])
        start += piece
    exact, other, n = x.astype(np.float64), original.astype(np.float64), sum(pieces)
    assert seen.rows == n
    size = np.sqrt((exact**2).mean(0))
    other_size = np.sqrt((other**2).mean(0))
    assert np.abs(seen.hessian() - exact.T @ exact / n).max(initial=0, where=True) <= 1e-5 * (size.max() ** 2)
    assert (np.abs(seen.hessian() - exact.T @ exact / n) <= 1e-5 * np.outer(size, size)).all()
    assert (np.abs(seen.cross() - other.T @ exact / n) <= 1e-5 * np.outer(other_size, size)).all()
    np.testing.assert_allclose(seen.energy(), size**2, rtol=1e-6)
    assert (np.abs(seen.mean_quantized() - exact.mean(0)) <= 1e-6 * size).all()
    assert (np.abs(seen.mean_float() - other.mean(0)) <= 1e-6 * other_size).all()
    assert {a.dtype for a in (seen.hessian(), seen.cross(), seen.energy(), seen.mean_float())} == {np.dtype("f")}


def test_the_same_batches_give_the_same_bits() -> None:
    def once() -> list[bytes]:
        seen = Accumulator(64, cross=True)
        for seed in range(3):
            seen.add(_rows(700, 64, seed), _rows(700, 64, seed + 9))
        return [seen.hessian().tobytes(), seen.cross().tobytes(), seen.energy().tobytes()]

    assert once() == once()


def test_a_channel_a_thousand_times_as_large_leaves_the_others_alone() -> None:
    x = _rows(4000, 16, 0)
    plain, hostile = Accumulator(16), Accumulator(16)
    plain.add(x)
    x[:, 3] *= 1000
    hostile.add(x)
    others = [n for n in range(16) if n != 3]
    np.testing.assert_array_equal(plain.energy()[others], hostile.energy()[others])
    np.testing.assert_allclose(plain.hessian()[np.ix_(others, others)], hostile.hessian()[np.ix_(others, others)])


def test_what_is_not_kept_cannot_be_asked_for() -> None:
    seen = Accumulator(4, hessian=False)
    seen.add(np.ones((2, 4), np.float32))
    np.testing.assert_array_equal(seen.energy(), np.ones(4))
    np.testing.assert_array_equal(seen.mean_float(), np.zeros(4))
    for kept in (seen.hessian, seen.cross):
        with pytest.raises(ValueError, match="not kept"):
            kept()


def test_rows_must_go_together() -> None:
    seen = Accumulator(4, cross=True)
    with pytest.raises(ValueError, match="do not go with"):
        seen.add(np.ones((2, 4), np.float32), np.ones((3, 4), np.float32))
    with pytest.raises(ValueError, match="missing"):
        seen.add(np.ones((2, 4), np.float32))


def test_rows_that_may_not_be_written_to_are_read(recwarn: pytest.WarningsRecorder) -> None:
    x = _rows(20, 4, 0)
    x.flags.writeable = False
    seen = Accumulator(4)
    seen.add(x)
    assert seen.rows == 20
    assert not recwarn.list
