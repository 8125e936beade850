"""The weights to aim at when the inputs are no longer what they were: least squares between the two chains. Knows no grid.

Layers that are quantized already change what a product sees: x becomes x'. The best float weights for the outputs of before,
argmin over T of E |W x - T x'|^2, are  T = W E[x x'T] E[x' x'T]^-1 ; rounding T instead of W makes every layer repair what the
layers before it did.

Source: the asymmetric calibration of GPTAQ (Li et al. 2025, arXiv:2504.02692) and Qronos (Zhang et al. 2025, arXiv:2505.11695),
here in the closed form of the normal equations.
"""

from __future__ import annotations

import torch

from aiasst.quantize.hessian import damped, device, factorized, solve, to_device
from aiasst.quantize.matrix import FloatMatrix


class Correction:
    """What an activation calls for in the weights that read it, any rows of them: its Hessian is factorized once.

    Damped (1% of each channel's energy), so that what few tokens say is not believed to the last digit.
    """

    def __init__(self, hessian: FloatMatrix, cross: FloatMatrix) -> None:
        """`hessian` is E[x' x'T] of the quantized chain, `cross` E[x x'T], float chain times quantized chain; [K, K]."""
        self._hessian = hessian
        self._cross = cross
        self._factor = factorized(damped(to_device(hessian)))

    def target(self, weight: FloatMatrix) -> FloatMatrix:
        """The weights [N, K] that on the quantized chain come closest to what `weight` [N, K] gives on the float chain."""
        rows = to_device(weight)
        missing = rows @ torch.from_numpy(self._cross - self._hessian).to(device())
        result: FloatMatrix = (rows + solve(self._factor, missing)).cpu().numpy()
        return result
