"""The Hessian of a product's squared output error, made safe to factorize. Pure linear algebra; knows no algorithm.

H = E[x xT] over the tokens of calibration: a change dW of the weights changes the squared output error of a row by dw H dwT.
Damping is a share of each channel's own energy, not of the mean energy: scaling a channel (and its weights the other way, which
changes nothing in the model) then changes nothing in the result either, and one channel of a thousand times the size does not
drown the others.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from aiasst.quantize.matrix import FloatMatrix

DAMPING = 0.01
"""Share of a channel's energy that is added to it."""
_TRIES = 6


def device() -> torch.device:
    """Where the linear algebra runs: the GPU when there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def to_device(array: npt.NDArray[np.float32]) -> torch.Tensor:
    """A float32 array as a tensor on `device()`; the array may be mapped, read-only or transposed."""
    return torch.from_numpy(np.array(array, dtype=np.float32)).to(device())


def damped(hessian: torch.Tensor, damping: float = DAMPING) -> torch.Tensor:
    """[K, K] → the same with `damping` of each diagonal element added to it; a dead channel (energy 0) gets a small energy.

    A channel without energy has no say in the result, and 0 on the diagonal could not be factorized.
    """
    energy = hessian.diagonal().clamp_min(0)
    living = energy[energy > 0]
    floor = living.mean() * 1e-8 if len(living) else energy.new_tensor(1.0)
    result = hessian.clone()
    result.diagonal().copy_(energy * (1 + damping) + (energy <= floor) * floor)
    return result


def factorized(hessian: torch.Tensor) -> torch.Tensor:
    """Lower Cholesky factor of a damped [K, K], of itself when possible, else with ever more damping.

    The factorization works on the matrix scaled to a diagonal of ones, so that channels of very different size keep their digits.

    Raises:
        ValueError: the matrix holds numbers that are not finite.
    """
    if not torch.isfinite(hessian).all():
        raise ValueError("the Hessian holds numbers that are not finite")
    size = hessian.diagonal().sqrt()
    # As little beside the matrix as can be: it may be as large as everything else.
    scaled = hessian / size[:, None]
    scaled /= size
    ones = scaled.diagonal().clone()
    extra = 0.0
    for _ in range(_TRIES):
        scaled.diagonal().copy_(ones + extra)
        factor, failed = torch.linalg.cholesky_ex(scaled)
        if not int(failed):
            result: torch.Tensor = factor.mul_(size[:, None])
            return result
        extra = max(extra * 10, DAMPING)
    # The correlations contradict each other beyond repair (too few digits): the diagonal alone is still right.
    return torch.diag(size)


def solve(factor: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """`right` [N, K] times the inverse of the matrix [K, K] that `factor` is the lower Cholesky factor of → [N, K]."""
    return torch.cholesky_solve(right.T, factor).T


class Factors:
    """A Hessian [K, K] damped, and its inverse factorized: when first asked for, and then kept for all rows that want it.

    Holds up to two matrices [K, K] beside the Hessian.
    """

    def __init__(self, hessian: FloatMatrix) -> None:
        self._hessian = hessian

    @cached_property
    def damped(self) -> torch.Tensor:
        """The damped Hessian [K, K]."""
        return damped(to_device(self._hessian))

    @cached_property
    def order(self) -> torch.Tensor:
        """The channels [K] in the order of falling energy."""
        return torch.argsort(self.damped.diagonal(), descending=True, stable=True)

    @cached_property
    def inverse(self) -> torch.Tensor:
        """Upper triangular U [K, K] with UT U = the inverse of the damped Hessian, its channels in `order`.

        With J the reversal of rows and columns and L LT = J H J, U = J L^-1 J: the inverse itself is never formed.
        """
        backwards = self.order.flip(0)
        lower = factorized(self.damped[backwards][:, backwards])
        identity = torch.eye(len(lower), device=lower.device)
        inverse: torch.Tensor = torch.linalg.solve_triangular(lower, identity, upper=False)
        return inverse.flip(0, 1)


def output_error(difference: FloatMatrix, hessian: FloatMatrix) -> float:
    """Mean over tokens of the squared error of all outputs: tr(D H DT), D = `difference` of the weights [N, K]."""
    change = to_device(difference)
    return float(((change @ to_device(hessian)) * change).sum())
