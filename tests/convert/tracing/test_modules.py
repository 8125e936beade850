"""Modules are replaced by what they compute: norms of any class, never something that merely has the name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.activations import NewGELUActivation
from transformers.pytorch_utils import Conv1D

from aiasst.convert.tracing import modules


class GainRMSNorm(torch.nn.Module):
    """RMS norm; `offset` 1 is Gemma's way."""

    def __init__(self, size: int, offset: float = 0.0, power: int = 2) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, size))
        self.variance_epsilon = 1e-6
        self.offset, self.power = offset, power

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spread = x.abs().pow(self.power).mean(-1, keepdim=True)
        return (self.weight + self.offset) * x * torch.rsqrt(spread + self.variance_epsilon)


class CenteredNorm(GainRMSNorm):
    """Layer norm without a bias."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x - x.mean(-1, keepdim=True))


class GatedNorm(GainRMSNorm):
    """Needs a second argument."""

    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(x) * gate


@pytest.mark.parametrize(
    "module", [GainRMSNorm(12), GainRMSNorm(12, offset=1.0), CenteredNorm(12), Conv1D(7, 12), NewGELUActivation()]
)  # fmt: skip
def test_a_known_module_keeps_its_values(module: Any) -> None:
    x = torch.randn(2, 5, 12)
    with torch.no_grad():
        before = module(x)
        assert modules.simplify(torch.nn.Sequential(module)) == 1
        assert "forward" in vars(module)
        torch.testing.assert_close(module(x), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("module", [GainRMSNorm(12, power=3), GatedNorm(12), torch.nn.LayerNorm(12)])
def test_another_module_is_left_alone(module: torch.nn.Module) -> None:
    assert modules.simplify(torch.nn.Sequential(module)) == 0


def test_a_norm_is_traced_as_one_operator() -> None:
    model = torch.nn.Sequential(GainRMSNorm(12)).eval()
    modules.simplify(model)
    program = torch.onnx.export(model, (torch.randn(2, 5, 12),), opset_version=23, verbose=False)
    assert program is not None
    kinds = [node.op_type for node in program.model.graph]
    assert kinds.count("RMSNormalization") == 1
    assert "Pow" not in kinds
    assert "0.weight" in program.model.graph.initializers
