"""Lets small modules of a torch model trace as the one ONNX operator they are. Knows what they compute, not whose they are.

Every architecture writes its own RMS norm in Python; traced as written it becomes six nodes that later passes would
have to recognise. Here a candidate is found by its class name and accepted by its behaviour: on random rows it must
give what the operator gives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from aiasst.convert.tracing import operators

if TYPE_CHECKING:
    import torch

    Forward = Callable[[torch.Tensor], torch.Tensor]

_TOLERANCE = 1e-5


def simplify(model: torch.nn.Module) -> int:
    """Replace the forward of every recognised module of `model`, for good; how many there were."""
    from transformers import activations, pytorch_utils

    count = 0
    for module in model.modules():
        forward: Forward | None = None
        if "Norm" in type(module).__name__:
            forward = _norm(module)
        elif isinstance(module, pytorch_utils.Conv1D):
            forward = _product(module)
        elif isinstance(module, activations.NewGELUActivation):
            forward = _tanh_gelu
        if forward is not None:
            module.forward = forward
            count += 1
    return count


def _tanh_gelu(x: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.nn.functional.gelu(x, approximate="tanh")


def _product(module: Any) -> Forward:
    """transformers' Conv1D is x · weight [K, N] + bias."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        return x @ module.weight + module.bias  # type: ignore[no-any-return]

    return forward


def _norm(module: torch.nn.Module) -> Forward | None:
    """The module as RMSNormalization or LayerNormalization over its last axis, or None where it is neither."""
    import torch

    weights = dict(module.named_parameters(recurse=False))
    weight = weights.get("weight")
    if isinstance(module, torch.nn.LayerNorm) or set(weights) != {"weight"} or weight is None or weight.dim() != 1:
        return None
    epsilon = next((v for k, v in vars(module).items() if "eps" in k and isinstance(v, float)), None)
    if epsilon is None:
        return None
    for candidate in (_rms(module, epsilon, 0.0), _rms(module, epsilon, 1.0), _layer(module, epsilon)):
        if _same(module, candidate, weight.shape[0]):
            return candidate
    return None


def _rms(module: Any, epsilon: float, offset: float) -> Forward:
    """RMSNorm (Zhang and Sennrich, arXiv 1910.07467) with the gain weight + offset.

    The weight is read from the module when called: captured, it would lose its name in the trace.
    """
    import torch

    def forward(x: torch.Tensor) -> torch.Tensor:
        gain = module.weight + offset if offset else module.weight
        if operators.tracing():
            return operators.standard("RMSNormalization", [x, gain], {"epsilon": epsilon, "axis": -1}, x.shape)
        return torch.nn.functional.rms_norm(x, (x.shape[-1],), gain, epsilon)

    return forward


def _layer(module: Any, epsilon: float) -> Forward:
    """LayerNorm (Ba et al., arXiv 1607.06450) without a bias."""
    import torch

    return lambda x: torch.nn.functional.layer_norm(x, (x.shape[-1],), module.weight, None, epsilon)


def _same(module: torch.nn.Module, candidate: Forward, width: int) -> bool:
    import torch

    generator = torch.Generator().manual_seed(0)
    x = torch.randn((5, width), generator=generator) * 3 + 0.5
    with torch.no_grad():
        try:
            expected = module(x)
        except (TypeError, RuntimeError, ValueError):
            return False  # takes more than rows (a gated norm): not the plain one
        return (
            isinstance(expected, torch.Tensor)
            and expected.shape == x.shape
            and bool(torch.allclose(expected, candidate(x), rtol=_TOLERANCE, atol=_TOLERANCE))
        )
