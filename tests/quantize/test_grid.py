from __future__ import annotations

import numpy as np

from aiasst.quantize.grid import Grid, Quantized, round_blocks, spread


def test_a_short_last_block_counts() -> None:
    assert Grid(4, 128).blocks(172) == 2
    assert Grid(8, None).blocks(172) == 1


def test_weights_are_value_minus_zero_point_times_scale() -> None:
    values = np.array([[0, 3, 1]], dtype=np.uint8)
    quantized = Quantized(
        Grid(2, 2, zero_point=True),
        values,
        scales=np.array([[0.5, 10]], dtype=np.float32),
        zero_points=np.array([[1, 3]], dtype=np.uint8),
    )
    assert quantized.dequantize().tolist() == [[-0.5, 1.0, -20.0]]


def test_a_number_a_block_becomes_a_number_a_weight() -> None:
    assert spread(np.array([[1, 2]]), Grid(4, 3), 5).tolist() == [[1, 1, 1, 2, 2]]


def test_rounding_clips_to_the_grid() -> None:
    chunk = np.array([[[-100, -1, 0.4, 100]]], dtype=np.float32)
    scales = np.ones((1, 1), dtype=np.float32)
    assert round_blocks(chunk, scales, None, Grid(4, 4)).tolist() == [[[0, 7, 8, 15]]]
    assert round_blocks(chunk, scales, None, Grid(8, 4, narrow=True)).tolist() == [[[28, 127, 128, 228]]]
