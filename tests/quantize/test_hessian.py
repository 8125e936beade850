"""Factorizing what calibration saw: dead channels, huge ones, too few tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aiasst.quantize.hessian import damped, factorized, solve


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
    assert torch.allclose(solve(hessian, hessian, damping=0.0), torch.eye(2), atol=1e-5)
