"""A group's weights: folded, corrected, rounded and put back where the float model can read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from aiasst.artifacts.recipe import WeightFormat
from aiasst.quantize import algorithms
from aiasst.quantize.algorithms import mse
from aiasst.quantize.calibrate import rounding
from aiasst.quantize.calibrate.contents import weight_rows
from aiasst.quantize.calibrate.rounding import GroupStatistics, Member
from aiasst.quantize.grid import Quantized
from aiasst.quantize.inventory import Found, take_inventory
from aiasst.quantize.source import open_source
from tests.quantize import graphs

INT4, INT8 = WeightFormat(format="int4", block_size=32), WeightFormat(format="int8", block_size=32)
FP16, FP32 = WeightFormat(format="fp16"), WeightFormat(format="fp32")
ROWS, K, N = 400, 96, 40


@pytest.fixture(params=[{}, {"transB": 1}], ids=["K first", "N first"])
def found(tmp_path: Path, request: pytest.FixtureRequest) -> Found:
    weight = graphs.random(N, K) if request.param else graphs.random(K, N)
    path = graphs.save(
        tmp_path / "m.onnx",
        [helper.make_node("Gemm", ["x", "w"], ["y"], **request.param)],
        {"x": (TensorProto.FLOAT, ["rows", K])},
        {"y": 2},
        {"w": weight},
    )
    (found,) = take_inventory(open_source(path).model.graph, None).found
    return found


def _seen(x: Any, original: Any) -> GroupStatistics:
    return GroupStatistics(
        len(x),
        np.square(x).mean(axis=0),
        x.T @ x / len(x),
        original.T @ x / len(x),
        original.mean(axis=0),
        x.mean(axis=0),
    )


def _inputs() -> tuple[Any, Any]:
    """Of the quantized chain and the float chain: correlated, with an outlier channel, a little apart."""
    original = graphs.random(ROWS, K, seed=1) @ (np.eye(K, dtype=np.float32) + 0.1 * graphs.random(K, K, seed=2)) + 0.5
    original[:, 3] *= 30
    return (original + 0.1 * graphs.random(ROWS, K, seed=3)).astype(np.float32), original.astype(np.float32)


@pytest.mark.parametrize("spec", [INT8, FP16, FP32], ids=lambda s: s.label)
def test_the_stored_weight_takes_the_place_of_the_original(found: Found, spec: WeightFormat) -> None:
    scales = np.exp(0.3 * graphs.random(K, seed=4)).astype(np.float32)
    content = rounding.round_member(Member(found, spec), None, scales, mse)
    assert isinstance(content, Quantized) == (spec is INT8)
    stored = rounding.stored_weight(found.matrix, content, scales, spec)
    assert stored.shape == found.matrix.stored_shape
    assert stored.flags.c_contiguous
    before = weight_rows(found)
    error = np.abs(found.matrix.as_rows(stored) - before).max() / np.abs(before).max()
    assert error < {"int8-b32": 0.05, "fp16": 1e-3, "fp32": 1e-6}[spec.label]


@pytest.mark.parametrize("name", algorithms.names())
def test_pieces_make_no_difference(found: Found, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, original = _inputs()
    member, algorithm = Member(found, INT4), algorithms.load(name)
    whole = rounding.round_member(member, _seen(x, original), None, algorithm)
    monkeypatch.setattr(rounding, "PIECE_ELEMENTS", 7 * K)
    pieces = rounding.round_member(member, _seen(x, original), None, algorithm)
    assert isinstance(whole, Quantized)
    assert isinstance(pieces, Quantized)
    # Sums of another order may round a tie the other way.
    assert (whole.values != pieces.values).mean() < 0.01
    np.testing.assert_array_equal(
        rounding.stored_weight(found.matrix, pieces, None, INT4), found.matrix.as_stored(pieces.dequantize())
    )


def test_pieces_share_what_is_factorized(found: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for the target and once for the rounding, however many pieces a weight comes in."""
    factorize, sizes = torch.linalg.cholesky_ex, list[int]()

    def counted(matrix: torch.Tensor) -> Any:
        sizes.append(len(matrix))
        return factorize(matrix)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", counted)
    monkeypatch.setattr(rounding, "PIECE_ELEMENTS", 7 * K)
    rounding.round_member(Member(found, INT4), _seen(*_inputs()), None, algorithms.load("gptq"))
    assert sizes == [K, K]


def _output_error(found: Found, stored: Any, x: Any, original: Any, bias: Any = 0.0) -> float:
    wanted = original @ weight_rows(found).T
    return float(np.square(x @ found.matrix.as_rows(stored).T + bias - wanted).sum() / np.square(wanted).sum())


def test_scales_and_statistics_belong_together(found: Found) -> None:
    """Dividing the statistics by the scales is the same as having looked at divided inputs."""
    x, original = _inputs()
    scales = np.exp(graphs.random(K, seed=4)).astype(np.float32)
    divided, again = _seen(x, original), _seen(x / scales, original / scales)
    divided.divide(scales)
    for name in ("energy", "hessian", "cross", "mean_float", "mean_quantized"):
        np.testing.assert_allclose(getattr(divided, name), getattr(again, name), rtol=1e-3, atol=1e-3)


def test_each_step_lowers_the_error_of_the_outputs(found: Found) -> None:
    x, original = _inputs()
    member, gptq = Member(found, INT4), algorithms.load("gptq")
    errors = {}
    for name, algorithm in (("mse", mse), ("gptq", gptq)):
        content = rounding.round_member(member, _seen(x, original), None, algorithm)
        errors[name] = _output_error(found, rounding.stored_weight(found.matrix, content, None, INT4), x, original)
    statistics = _seen(x, original)
    scales = rounding.find_scales([member], statistics)
    statistics.divide(scales)
    content = rounding.round_member(member, statistics, scales, gptq, last=True)
    assert statistics.cross is None
    stored = rounding.stored_weight(found.matrix, content, scales, INT4)
    errors["scaled"] = _output_error(found, stored, x, original)
    before, means = np.zeros(N, np.float32), (original.mean(axis=0), x.mean(axis=0))
    bias = rounding.corrected_bias(before, found.matrix, weight_rows(found), stored, *means)
    errors["bias"] = _output_error(found, stored, x, original, bias)
    assert errors["mse"] > errors["gptq"] > errors["scaled"] > errors["bias"]
