"""Better integers and better scales for the same target: coordinate descent on the output error. Knows no algorithm.

With the target T, the weights Q = (v - z) s and the Hessian H the error is tr((T - Q) H (T - Q)T). Rounding one channel after
another (GPTQ) leaves a point from which single integers can still move: sweeps over all channels set each integer to its best
value given all others, and between sweeps the scales are set to their least-squares values given the integers. The error never
grows, except by what float32 rounds.

Sources: QuantEase (Behdin et al. 2023, arXiv:2309.01885) for the sweeps; the scales' normal equations are ordinary least squares.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Channels whose changes are collected before the others hear of them: a matrix product instead of many outer products.
_BLOCK = 64


@dataclass
class Rounding:
    """A matrix on its grid, as tensors that descent changes."""

    levels: torch.Tensor
    """v - z: whole numbers [N, K] as float32."""
    scales: torch.Tensor
    """[N, blocks]."""
    low: torch.Tensor
    """Smallest level of each block [N, blocks]."""
    high: torch.Tensor
    """Largest level of each block [N, blocks]."""
    block: int
    """Channels of a block; the last may be shorter."""

    def spread(self, per_block: torch.Tensor) -> torch.Tensor:
        """[N, blocks] → [N, K]."""
        return per_block.repeat_interleave(self.block, dim=1)[:, : self.levels.shape[1]]

    def weights(self) -> torch.Tensor:
        """[N, K] that the levels stand for."""
        return self.levels * self.spread(self.scales)


def descend(target: torch.Tensor, start: Rounding, hessian: torch.Tensor, *, rounds: int, sweeps: int) -> Rounding:
    """`rounds` times: least-squares scales, then `sweeps` over all integers. `hessian` [K, K] is damped; `target` [N, K]."""
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    current = start
    for _ in range(rounds):
        current = Rounding(current.levels, fitted_scales(target, current, hessian), start.low, start.high, start.block)
        current = Rounding(
            swept_levels(target, current, hessian, order, sweeps), current.scales, start.low, start.high, start.block
        )
    return current


def swept_levels(
    target: torch.Tensor, rounding: Rounding, hessian: torch.Tensor, order: torch.Tensor, sweeps: int
) -> torch.Tensor:
    """Levels [N, K] after `sweeps` of exact line search over every channel in `order`.

    Inside, channels are rows, so that one channel of all N rows lies in one piece of memory.
    """
    # A copy in any case: the transpose of a single row is contiguous as it is.
    levels = rounding.levels.T.clone(memory_format=torch.contiguous_format)
    scales, low, high = (rounding.spread(t).T.contiguous() for t in (rounding.scales, rounding.low, rounding.high))
    curvature = hessian.diagonal()
    gradient = hessian @ (target - rounding.weights()).T
    for _ in range(sweeps):
        for start in range(0, len(order), _BLOCK):
            chosen = order[start : start + _BLOCK]
            own, local = hessian[chosen][:, chosen], gradient[chosen]
            changes = torch.empty_like(local)
            for place, channel in enumerate(chosen.tolist()):
                scale, old = scales[channel], levels[channel]
                best = local[place].div(curvature[channel] * scale).add_(old).round_()
                best = best.clamp_(low[channel], high[channel])
                torch.mul(best - old, scale, out=changes[place])
                levels[channel] = best
                # In place and for those still to come alone: this line is most of the work.
                local[place + 1 :].addr_(own[place, place + 1 :], changes[place], alpha=-1)
            gradient.addmm_(hessian[:, chosen], changes, alpha=-1)
    return levels.T.contiguous()


def fitted_scales(target: torch.Tensor, rounding: Rounding, hessian: torch.Tensor) -> torch.Tensor:
    """Least-squares scales [N, blocks] of the levels under `hessian`; a block of zeros, or one that would turn wild, keeps its own.

    A row's blocks depend on each other through the Hessian: a small system of equations each row.
    """
    n, k = rounding.levels.shape
    blocks, block = rounding.scales.shape[1], rounding.block
    normal = torch.empty(n, blocks, blocks, device=target.device)
    right = torch.empty(n, blocks, device=target.device)
    wanted = target @ hessian
    for b in range(blocks):
        own = slice(b * block, min((b + 1) * block, k))
        levels = rounding.levels[:, own]
        normal[:, b] = _sums((levels @ hessian[own]) * rounding.levels, blocks, block)
        right[:, b] = (wanted[:, own] * levels).sum(dim=1)
    diagonal = normal.diagonal(dim1=1, dim2=2)
    # A block of zeros has no equation; its own scale is as good as any.
    empty = diagonal <= 0
    diagonal += 1e-6 * diagonal.mean(dim=1, keepdim=True) + empty
    scales, failed = torch.linalg.solve_ex(normal, right)
    change = scales / rounding.scales
    usable = torch.isfinite(scales) & ~empty & (change > 0.25) & (change < 4) & (failed == 0)[:, None]
    return torch.where(usable, scales, rounding.scales)


def _sums(values: torch.Tensor, blocks: int, block: int) -> torch.Tensor:
    """Sums over the blocks of [N, K] → [N, blocks]."""
    padded = torch.nn.functional.pad(values, (0, blocks * block - values.shape[1]))
    return padded.view(len(values), blocks, block).sum(dim=2)
