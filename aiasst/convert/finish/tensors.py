"""Weights derived from weights, evaluated only when they are written. Knows arrays, no graph.

Every function takes initializer values whose tensors may themselves be lazy, and returns a lazy tensor, so that a
model larger than memory can be packed: at most one derived matrix exists at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir


def lazy(shape: Sequence[int], dtype: ir.DataType, compute: Callable[[], np.ndarray]) -> ir.LazyTensor:
    """A tensor of `shape` and `dtype` whose content `compute` makes each time it is asked for."""
    return ir.LazyTensor(
        lambda: ir.Tensor(np.ascontiguousarray(compute()), dtype=dtype), dtype=dtype, shape=ir.Shape(shape)
    )


def shape_of(tensor: ir.TensorProtocol) -> tuple[int, ...]:
    """The static shape of a weight."""
    return tuple(int(size) for size in tensor.shape)  # type: ignore[arg-type]


def transposed(tensor: ir.TensorProtocol, perm: Sequence[int] | None = None) -> ir.LazyTensor:
    """`tensor` with its axes in the order `perm` (reversed where None)."""
    axes = tuple(perm) if perm is not None else tuple(reversed(range(len(tensor.shape))))
    shape = shape_of(tensor)
    return lazy([shape[axis] for axis in axes], tensor.dtype, lambda: tensor.numpy().transpose(axes))


def concatenated(tensors: Sequence[ir.TensorProtocol], axis: int) -> ir.LazyTensor:
    """The `tensors` one after the other along `axis`."""
    shapes = [list(shape_of(tensor)) for tensor in tensors]
    shape = shapes[0]
    shape[axis] = sum(each[axis] for each in shapes[1:]) + shape[axis]
    return lazy(shape, tensors[0].dtype, lambda: np.concatenate([tensor.numpy() for tensor in tensors], axis=axis))


def zeros(shape: Sequence[int], dtype: ir.DataType) -> ir.LazyTensor:
    """All zero."""
    return lazy(shape, dtype, lambda: np.zeros(tuple(shape), dtype.numpy()))


def cast(tensor: ir.TensorProtocol, dtype: ir.DataType) -> ir.TensorProtocol:
    """`tensor` in `dtype`; itself where it already is."""
    if tensor.dtype == dtype:
        return tensor
    return lazy(shape_of(tensor), dtype, lambda: tensor.numpy().astype(dtype.numpy()))


def spread(tensor: ir.TensorProtocol, axis: int, heads: int, places: np.ndarray, width: int) -> ir.LazyTensor:
    """Widen every head along `axis`: entry j of a head moves to `places`[j] of `width`, the gaps are zero.

    Args:
        tensor: Its `axis` has `heads` x len(`places`) entries, head by head.
        axis: The axis of the heads.
        heads: How many heads lie along the axis.
        places: int [true head size], each below `width`, all different.
        width: The new head size.
    """
    shape = list(shape_of(tensor))
    shape[axis] = heads * width
    positions = (np.arange(heads)[:, None] * width + places[None, :]).reshape(-1)

    def compute() -> np.ndarray:
        wide = np.zeros(shape, tensor.dtype.numpy())
        index: list[slice | np.ndarray] = [slice(None)] * len(shape)
        index[axis] = positions
        wide[tuple(index)] = tensor.numpy()
        return wide

    return lazy(shape, tensor.dtype, compute)


def widened(tensor: ir.TensorProtocol, axis: int, size: int, fill: float) -> ir.LazyTensor:
    """`tensor` with `axis` brought to `size` by entries of value `fill` at its end."""
    shape = list(shape_of(tensor))
    pads = [(0, 0)] * len(shape)
    pads[axis] = (0, size - shape[axis])
    shape[axis] = size
    return lazy(shape, tensor.dtype, lambda: np.pad(tensor.numpy(), pads, constant_values=fill))
