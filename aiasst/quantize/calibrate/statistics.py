"""What is seen of the inputs of a product, summed up batch by batch: means, energies, matrices of second moments. Knows no graph.

torch does the sums, on a GPU when there is one. Means are kept instead of sums, so that the result stands ready in place and
its numbers stay small. A batch is summed in float32 (a few thousand products of similar size: a relative error of 1e-6);
vectors are combined over the batches in float64. On one machine the same batches in the same order give the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from aiasst.quantize.hessian import device as compute_device
from aiasst.quantize.matrix import FloatMatrix

FloatVector = npt.NDArray[np.float32]

# Rows that go to the device and into one product at once: what float32 sums well, and little beside a matrix [K, K].
_ROWS = 4096


class Accumulator:
    """Statistics of activations x [rows, K], and of x' of the same tokens in another chain where those are given."""

    def __init__(
        self, width: int, *, hessian: bool = True, cross: bool = False, device: torch.device | None = None
    ) -> None:
        """Begin with no rows; a matrix [width, width] is kept for each of `hessian` and `cross`."""
        self.rows = 0
        """Tokens seen."""
        self._device = device or compute_device()
        self._hessian = self._zeros(width, width, dtype=torch.float32) if hessian else None
        self._cross = self._zeros(width, width, dtype=torch.float32) if cross else None
        self._energy, self._mean, self._mean_float = (self._zeros(width, dtype=torch.float64) for _ in range(3))

    def add(self, x_quantized: FloatMatrix, x_float: FloatMatrix | None = None) -> None:
        """See some more rows: float32 [rows, K] of the quantized chain, and the same rows of the float chain or None.

        Raises:
            ValueError: the two differ in shape, or `cross` is kept and the second is missing.
        """
        if x_float is not None and x_float.shape != x_quantized.shape:
            raise ValueError(f"{x_quantized.shape} rows of one chain do not go with {x_float.shape} of the other")
        if x_float is None and self._cross is not None:
            raise ValueError("the rows of the float chain are missing")
        for start in range(0, len(x_quantized), _ROWS):
            rows = slice(start, start + _ROWS)
            self._add(self._moved(x_quantized[rows]), None if x_float is None else self._moved(x_float[rows]))

    def energy(self) -> FloatVector:
        """Mean of x^2, float32 [K]."""
        return _array(self._energy.to(torch.float32))

    def hessian(self) -> FloatMatrix:
        """Mean of x xT, float32 [K, K]; not a copy. Raises ValueError: it was not kept."""
        return _array(_kept(self._hessian))

    def cross(self) -> FloatMatrix:
        """Mean of x' xT, float32 [K, K]; not a copy. Raises ValueError: it was not kept."""
        return _array(_kept(self._cross))

    def mean_float(self) -> FloatVector:
        """Mean of x', float32 [K]; zero where it was never given."""
        return _array(self._mean_float.to(torch.float32))

    def mean_quantized(self) -> FloatVector:
        """Mean of x, float32 [K]."""
        return _array(self._mean.to(torch.float32))

    def _add(self, x: torch.Tensor, original: torch.Tensor | None) -> None:
        total = self.rows + len(x)
        old, new = self.rows / total, 1 / total
        self._mean.mul_(old).add_(x.sum(0, dtype=torch.float64), alpha=new)
        if original is not None:
            self._mean_float.mul_(old).add_(original.sum(0, dtype=torch.float64), alpha=new)
        if self._cross is not None and original is not None:
            self._cross.addmm_(original.T, x, beta=old, alpha=new)
        if self._hessian is not None:
            self._hessian.addmm_(x.T, x, beta=old, alpha=new)
        self._energy.mul_(old).add_(x.square().sum(0, dtype=torch.float64), alpha=new)
        self.rows = total

    def _zeros(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=self._device)

    def _moved(self, rows: FloatMatrix) -> torch.Tensor:
        if not rows.flags.writeable:
            # torch has no tensors that may not be written to, and warns.
            rows = rows.copy()
        return torch.from_numpy(rows).to(self._device, torch.float32)


def _kept(matrix: torch.Tensor | None) -> torch.Tensor:
    if matrix is None:
        raise ValueError("this matrix was not kept")
    return matrix


def _array(tensor: torch.Tensor) -> npt.NDArray[Any]:
    found: npt.NDArray[Any] = tensor.cpu().numpy()
    return found
