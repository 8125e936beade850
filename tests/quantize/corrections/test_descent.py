"""Descent: never a larger error, always on the grid, and the best possible where all possibilities can be tried."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aiasst.quantize.corrections.descent import Rounding, descend, fitted_scales, swept_levels
from aiasst.quantize.hessian import damped


def _problem(seed: int, n: int, k: int, block: int) -> tuple[torch.Tensor, Rounding, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(3 * k, k, generator=draw) @ torch.randn(k, k, generator=draw)
    target = torch.randn(n, k, generator=draw)
    blocks = -(-k // block)
    scales = torch.full((n, blocks), 0.3)
    rounding = Rounding(torch.empty(0), scales, torch.full_like(scales, -8), torch.full_like(scales, 7), block)
    rounding.levels = (target / 0.3).round().clamp(-8, 7)
    return target, rounding, damped(inputs.T @ inputs / len(inputs))


def _error(target: torch.Tensor, rounding: Rounding, hessian: torch.Tensor) -> float:
    difference = target - rounding.weights()
    return float(((difference @ hessian) * difference).sum())


@given(seed=st.integers(0, 99), n=st.integers(1, 5), k=st.integers(1, 80), block=st.sampled_from([16, 32, 128]))
@settings(max_examples=25, deadline=None)
def test_descent_never_makes_the_error_larger_and_stays_on_the_grid(seed: int, n: int, k: int, block: int) -> None:
    target, start, hessian = _problem(seed, n, k, block)
    before = start.levels.clone()
    result = descend(target, start, hessian, rounds=2, sweeps=2)
    assert torch.equal(start.levels, before)
    assert _error(target, result, hessian) <= _error(target, start, hessian) * (1 + 1e-4) + 1e-5
    assert torch.equal(result.levels, result.levels.round())
    assert result.levels.min() >= -8
    assert result.levels.max() <= 7


def test_no_single_integer_can_be_bettered_in_the_end() -> None:
    target, start, hessian = _problem(3, 1, 5, 16)
    order = torch.arange(5)
    levels = swept_levels(target, start, hessian, order, sweeps=50)
    reached = Rounding(levels, start.scales, start.low, start.high, start.block)
    least = _error(target, reached, hessian)
    for channel, level in itertools.product(range(5), range(-8, 8)):
        changed = levels.clone()
        changed[0, channel] = level
        other = Rounding(changed, start.scales, start.low, start.high, start.block)
        assert _error(target, other, hessian) >= least - 1e-4


def test_scales_that_made_the_weights_are_found_again() -> None:
    _, start, hessian = _problem(5, 4, 64, 16)
    true = Rounding(start.levels, start.scales * 1.3, start.low, start.high, start.block)
    assert torch.allclose(fitted_scales(true.weights(), start, hessian), true.scales, rtol=1e-3)


def test_a_block_of_zeros_keeps_its_scale() -> None:
    target, start, hessian = _problem(5, 4, 64, 16)
    start.levels[:, 16:32] = 0
    assert torch.equal(fitted_scales(target, start, hessian)[:, 1], start.scales[:, 1])
