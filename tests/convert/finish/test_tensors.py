"""Derived weights: their content, and that nothing is computed before it is asked for."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from aiasst.convert.finish import tensors


def matrix(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + 1


def test_nothing_is_computed_until_it_is_read() -> None:
    asked: list[str] = []

    def compute() -> np.ndarray:
        asked.append("now")
        return matrix(2, 3)

    source = tensors.lazy([2, 3], ir.DataType.FLOAT, compute)
    packed = tensors.concatenated([tensors.transposed(source), tensors.zeros([3, 1], ir.DataType.FLOAT)], axis=1)
    assert tensors.shape_of(packed) == (3, 3)
    assert packed.nbytes == 36
    assert asked == []
    np.testing.assert_array_equal(packed.numpy(), np.concatenate([matrix(2, 3).T, np.zeros((3, 1))], axis=1))
    assert asked == ["now"]


def test_spread_moves_every_head_alike() -> None:
    places = np.array([0, 3])
    wide = tensors.spread(ir.Tensor(matrix(1, 4)), 1, 2, places, 4).numpy()
    np.testing.assert_array_equal(wide, [[1, 0, 0, 2, 3, 0, 0, 4]])
    tall = tensors.spread(ir.Tensor(matrix(4, 1)), 0, 2, places, 4).numpy()
    np.testing.assert_array_equal(tall, wide.T)


def test_widened_fills_the_end() -> None:
    wide = tensors.widened(ir.Tensor(matrix(2, 1)), 1, 3, 9.0).numpy()
    np.testing.assert_array_equal(wide, [[1, 9, 9], [2, 9, 9]])


def test_cast_returns_the_tensor_itself_where_it_fits() -> None:
    tensor = ir.Tensor(matrix(2, 2))
    assert tensors.cast(tensor, ir.DataType.FLOAT) is tensor
    assert tensors.cast(tensor, ir.DataType.FLOAT16).numpy().dtype == np.float16
