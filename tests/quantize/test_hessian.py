"""Factorizing what calibration saw: dead channels, huge ones, too few tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aiasst.quantize.hessian import Factors, damped, factorized, solve


@given(seed=st.integers(0, 99), k=st.integers(1, 60), tokens=st.integers(1, 80), huge=st.sampled_from([1.0, 1e3, 1e6]))
@settings(max_examples=40, deadline=None)
def test_every_hessian_can_be_factorized(seed: int, k: int, tokens: int, huge: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(tokens, k, generator=draw)
    inputs[:, k // 2] *= huge
    inputs[:, k // 3] = 0
    safe = damped(inputs.T @ inputs / tokens)
    factor = factorized(safe)
    assert torch.isfinite(factor).all()
    size = safe.diagonal().sqrt()
    assert ((factor @ factor.T - safe).abs() / torch.outer(size, size)).max() < 1e-3


def test_no_token_at_all_leaves_a_diagonal() -> None:
    assert torch.equal(damped(torch.zeros(4, 4)), torch.eye(4))


def test_numbers_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        factorized(torch.full((2, 2), torch.nan))


def test_solve_inverts() -> None:
    hessian = torch.tensor([[2.0, 0.5], [0.5, 1.0]])
    assert torch.allclose(solve(factorized(hessian), hessian), torch.eye(2), atol=1e-5)


def test_the_inverse_is_factorized_in_the_order_of_energy() -> None:
    inputs = torch.randn(200, 12, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.5, 3, 12)
    factors = Factors((inputs.T @ inputs / len(inputs)).numpy())
    order, upper = factors.order, factors.inverse
    assert (factors.damped.diagonal()[order].diff() <= 0).all()
    assert torch.equal(upper, upper.triu())
    inverse = torch.linalg.inv(factors.damped[order][:, order])
    assert torch.allclose(upper.T @ upper, inverse, rtol=1e-3, atol=1e-5)


def test_factors_are_worked_out_once() -> None:
    factors = Factors(np.eye(4, dtype=np.float32))
    assert factors.inverse is factors.inverse
    assert factors.damped is factors.damped
