"""One conformance test over every algorithm, and what each promises beyond it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiasst.errors import ArtifactError
from aiasst.quantize import algorithms, chunks
from aiasst.quantize.algorithms import InputStatistics, mse, rtn
from aiasst.quantize.grid import Grid

GRIDS = [
    Grid(bits, block, zero_point) for bits in (2, 4, 8) for block in (32, 128, None) for zero_point in (False, True)
] + [Grid(8, None, narrow=True)]
NAMES = algorithms.names()


def _statistics(k: int) -> InputStatistics:
    """Of fewer tokens than channels, so that the Hessian is singular; one channel dead, one huge."""
    size = np.linspace(0.3, 2, k, dtype=np.float32)
    size[k // 2 :: 50] = 0
    size[k // 3 : k // 3 + 1] *= 1000
    rows = (np.random.default_rng(k).standard_normal((k // 2 + 1, k)) * size).astype(np.float32)
    hessian = rows.T @ rows / len(rows)
    return InputStatistics(rows=len(rows), energy=hessian.diagonal().copy(), hessian=hessian)


def _of_outputs(name: str, k: int) -> np.ndarray:
    """What the algorithm weighs errors by, and a little damping."""
    statistics = _statistics(k)
    hessian = np.diag(statistics.energy) if algorithms.load(name).NEEDS == "energy" else statistics.hessian
    return hessian.astype(np.float64) + np.diag(statistics.energy) * 0.02


def test_algorithms_are_found_by_their_file_name() -> None:
    assert {"rtn", "mse", "awq", "gptq"} <= set(NAMES)


def test_an_unknown_algorithm_names_those_there_are() -> None:
    with pytest.raises(ArtifactError) as caught:
        algorithms.load("wishful")
    assert "wishful" in caught.value.message
    assert "awq, gptq, mse, rtn" in caught.value.hint


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@given(n=st.integers(1, 9), k=st.integers(1, 90), size=st.sampled_from([1e-6, 1.0, 1e6]), seed=st.integers(0, 99))
@settings(max_examples=8, deadline=None)
def test_every_algorithm_stays_on_the_grid_and_near_the_weight(
    name: str, grid: Grid, n: int, k: int, size: float, seed: int
) -> None:
    weight = (np.random.default_rng(seed).standard_normal((n, k)) * size).astype(np.float32)
    result = algorithms.load(name).quantize(weight, grid, _statistics(k))
    assert result.values.shape == (n, k)
    assert result.values.dtype == np.uint8
    assert result.scales.shape == (n, grid.blocks(k))
    assert (result.zero_points is not None) == grid.zero_point
    assert result.values.min() >= grid.lowest
    assert result.values.max() <= grid.highest
    # Rounding every weight to zero would leave exactly the weight's own energy, or the output's where the outputs count.
    hessian = np.eye(k) if algorithms.load(name).NEEDS == "nothing" else _of_outputs(name, k)
    error, whole = (((d @ hessian) * d).sum() for d in (result.dequantize().astype(np.float64) - weight, weight))
    assert error <= whole * 1.0001


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_dead_and_huge_channels_break_nothing(name: str, grid: Grid) -> None:
    weight = np.random.default_rng(0).standard_normal((8, 256)).astype(np.float32)
    weight[1] = 0
    weight[2] = 1e-42
    weight[3] *= 1000
    weight[:, 7] = 0
    weight[:, 9] *= 1000
    result = algorithms.load(name).quantize(weight, grid, _statistics(256))
    back = result.dequantize()
    assert np.isfinite(back).all()
    assert not back[1].any()
    assert np.abs(back[2]).max() < 1e-30


@pytest.mark.parametrize("name", NAMES)
def test_a_transposed_memory_mapped_view_gives_the_same_bytes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "_CHUNK_ELEMENTS", 1000)  # several chunks
    weight = np.random.default_rng(0).standard_normal((172, 105)).astype(np.float32)
    np.save(tmp_path / "weight.npy", weight)
    mapped = np.load(tmp_path / "weight.npy", mmap_mode="r").T
    grid = Grid(4, 64, zero_point=True)
    here, there = (algorithms.load(name).quantize(w, grid) for w in (np.ascontiguousarray(weight.T), mapped))
    np.testing.assert_array_equal(here.values, there.values)
    np.testing.assert_array_equal(here.scales, there.scales)


def test_rtn_rounds_to_the_nearest_value() -> None:
    weight = np.array([[-8, -3.4, 0, 0.6, 2.5, 7]], dtype=np.float32)
    result = rtn.quantize(weight, Grid(4, 32))
    assert result.dequantize().tolist() == [[-8, -3, 0, 1, 2, 7]]


def test_rtn_puts_the_extreme_weight_of_either_sign_on_the_grid() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32)
    back = rtn.quantize(weight, Grid(4, 128)).dequantize()
    extreme = np.abs(weight).argmax(axis=1)
    rows = np.arange(64)
    np.testing.assert_allclose(back[rows, extreme], weight[rows, extreme], rtol=1e-6)


def test_a_zero_point_helps_weights_that_lie_askew() -> None:
    weight = np.random.default_rng(0).uniform(0, 1, (16, 128)).astype(np.float32)
    errors = [np.abs(rtn.quantize(weight, Grid(4, 64, zero)).dequantize() - weight).mean() for zero in (False, True)]
    assert errors[1] < 0.6 * errors[0]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_searched_scale_is_never_worse_in_any_row(grid: Grid) -> None:
    weight = np.random.default_rng(1).standard_t(4, (32, 256)).astype(np.float32)
    plain, searched = (
        np.sum((algorithm.quantize(weight, grid).dequantize() - weight) ** 2, axis=1) for algorithm in (rtn, mse)
    )
    assert (searched <= plain * (1 + 1e-5)).all()
    if grid.bits < 8:
        assert searched.sum() < 0.95 * plain.sum()


def test_statistics_move_the_error_to_where_inputs_are_small() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    energy = np.where(np.arange(256) < 16, 100, 0.01).astype(np.float32)
    grid = Grid(2, 128)
    blind = mse.quantize(weight, grid)
    aware = mse.quantize(weight, grid, InputStatistics(rows=1, energy=energy))
    harm = [float(((q.dequantize() - weight) ** 2 @ energy).sum()) for q in (blind, aware)]
    assert harm[1] < 0.9 * harm[0]
