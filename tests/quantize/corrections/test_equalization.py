"""Channel scales: the same model whatever scales it came with, and never worse than none."""

from __future__ import annotations

import numpy as np
import pytest

from aiasst.quantize.algorithms import InputStatistics, gptq, mse
from aiasst.quantize.corrections.equalization import channel_scales
from aiasst.quantize.grid import Grid
from aiasst.quantize.hessian import output_error

K, N = 128, 64


def _product(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    inputs = (draw.standard_normal((600, K)) @ draw.standard_normal((K, K))).astype(np.float32)
    return inputs.T @ inputs / 600, draw.standard_normal((N, K)).astype(np.float32)


def _harm(weight: np.ndarray, hessian: np.ndarray, scales: np.ndarray, grid: Grid, *, known: bool) -> float:
    folded = hessian / np.outer(scales, scales)
    statistics = InputStatistics(600, folded.diagonal().copy(), folded if known else None)
    quantized = (gptq if known else mse).quantize(weight * scales, grid, statistics)
    return output_error(quantized.dequantize() - weight * scales, folded)


@pytest.mark.parametrize("known", [True, False], ids=["hessian", "energy"])
def test_a_channel_scaled_up_before_and_down_behind_changes_nothing(known: bool) -> None:
    hessian, weight = _product()
    twist = np.ones(K, dtype=np.float32)
    twist[[5, 77]] = 30
    twisted = hessian * np.outer(twist, twist)
    grid = Grid(4, 128)
    plain = channel_scales(hessian.diagonal().copy(), [weight], [grid], hessian if known else None)
    hostile = channel_scales(twisted.diagonal().copy(), [weight / twist], [grid], twisted if known else None)
    harm = _harm(weight, hessian, plain, grid, known=known)
    assert _harm(weight / twist, twisted, hostile, grid, known=known) < 1.1 * harm
    assert _harm(weight / twist, twisted, np.ones(K, np.float32), grid, known=known) > 1.2 * harm


def test_outlier_channels_are_calmed_where_activations_are_rounded() -> None:
    energy = np.ones(K, dtype=np.float32)
    energy[3] = 1e4
    scales = channel_scales(energy, [_product()[1]], [Grid(8, None, narrow=True)])
    calmed = energy / scales**2
    assert calmed.max() < 0.05 * energy.max()


def test_a_dead_channel_or_weight_breaks_nothing() -> None:
    hessian, weight = _product()
    hessian[4], hessian[:, 4], weight[:, 9] = 0, 0, 0
    scales = channel_scales(hessian.diagonal().copy(), [weight], [Grid(4, 128)], hessian)
    assert np.isfinite(scales).all()
    assert (scales > 0).all()


def test_floating_weights_and_silent_inputs_need_no_scales() -> None:
    hessian, weight = _product()
    assert (channel_scales(hessian.diagonal().copy(), [weight], [None]) == 1).all()
    assert (channel_scales(np.zeros(K, np.float32), [weight], [Grid(4, 128)]) == 1).all()
