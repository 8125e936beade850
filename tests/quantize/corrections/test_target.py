"""The corrected target and the corrected bias do better on the quantized chain than what they correct."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from aiasst.quantize.corrections.bias import bias_shift
from aiasst.quantize.corrections.target import Correction

TOKENS = 400


def _chains(seed: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    exact = (draw.standard_normal((TOKENS, k)) @ draw.standard_normal((k, k))).astype(np.float32)
    disturbed = (exact @ (np.eye(k) + 0.1 * draw.standard_normal((k, k)))).astype(np.float32)
    return exact, disturbed, draw.standard_normal((7, k)).astype(np.float32)


@given(seed=st.integers(0, 50), k=st.integers(2, 40))
@settings(max_examples=20, deadline=None)
def test_the_target_undoes_what_earlier_layers_did(seed: int, k: int) -> None:
    exact, disturbed, weight = _chains(seed, k)
    hessian, cross = disturbed.T @ disturbed / TOKENS, exact.T @ disturbed / TOKENS
    target = Correction(hessian, cross).target(weight)
    before, after = (np.square(exact @ weight.T - disturbed @ w.T).sum() for w in (weight, target))
    assert after <= before * 1.0001


def test_the_same_chains_leave_the_weight_as_it_is() -> None:
    exact, _, weight = _chains(0, 20)
    hessian = exact.T @ exact / TOKENS
    np.testing.assert_allclose(Correction(hessian, hessian).target(weight), weight, atol=1e-5)


def test_the_mean_output_is_right_again() -> None:
    exact, disturbed, weight = _chains(2, 20)
    rounded = np.round(weight)
    exact, disturbed = exact + 1, disturbed + 1
    shift = bias_shift(weight, rounded, exact.mean(axis=0), disturbed.mean(axis=0))
    mean = (disturbed @ rounded.T + shift).mean(axis=0)
    np.testing.assert_allclose(mean, (exact @ weight.T).mean(axis=0), atol=1e-3)
