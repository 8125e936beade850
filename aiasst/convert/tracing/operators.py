"""Puts an operator of our choice into a trace, whichever of torch's two tracers is at work. Knows no model.

torch.export takes a symbolic operator by name; the older TorchScript tracer takes the `symbolic` of an autograd
function, in a domain of its own where the operator is younger than the opset it writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

if TYPE_CHECKING:
    import torch

Attribute = int | float
DOMAIN = "aiasst"
"""Of our own markers, and of standard operators until `restore_standard` has put them back where they belong."""
OPSET = 23
"""The first with RMSNormalization and Attention."""
_STANDARD = frozenset({"RMSNormalization", "Attention"})
_BORROWED = "Standard"


def tracing() -> bool:
    """Whether a trace is being written."""
    import torch

    return torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()


def standard(
    kind: str, inputs: Sequence[torch.Tensor], attributes: Mapping[str, Attribute], shape: Sequence[Any]
) -> torch.Tensor:
    """The operator `kind` of the ONNX standard; the result has `shape` and the first input's type. Only while `tracing`."""
    import torch

    if not torch.compiler.is_exporting():
        return _scripted(f"{DOMAIN}::{_BORROWED}{kind}", inputs, attributes, shape)
    first = inputs[0]
    return torch.onnx.ops.symbolic(kind, inputs, dict(attributes), dtype=first.dtype, shape=shape, version=OPSET)


def marker(kind: str, inputs: Sequence[torch.Tensor], shape: Sequence[Any]) -> torch.Tensor:
    """A node of our own domain, to be replaced later. Only while `tracing`."""
    import torch

    name = f"{DOMAIN}::{kind}"
    if not torch.compiler.is_exporting():
        return _scripted(name, inputs, {}, shape)
    return torch.onnx.ops.symbolic(name, inputs, dtype=inputs[0].dtype, shape=shape, version=1)


def _scripted(
    name: str, inputs: Sequence[torch.Tensor], attributes: Mapping[str, Attribute], shape: Sequence[Any]
) -> torch.Tensor:
    """The operator `name` in a TorchScript trace."""
    import torch

    typed = {f"{key}_{'f' if isinstance(value, float) else 'i'}": value for key, value in attributes.items()}
    sizes = [int(size) for size in shape]

    class Traced(torch.autograd.Function):
        """Zeros for the tracer, the operator for the graph."""

        @staticmethod
        def forward(context: Any, *values: torch.Tensor) -> torch.Tensor:
            return values[0].new_zeros(sizes)

        @staticmethod
        def symbolic(graph: Any, *values: Any) -> Any:
            made = graph.op(name, *values, **typed)
            made.setType(values[0].type().with_sizes([None] * (len(sizes) - 1) + sizes[-1:]))
            return made

    result: torch.Tensor = Traced.apply(*inputs)  # type: ignore[no-untyped-call]
    return result


def restore_standard(model: ir.Model) -> None:
    """Bring a TorchScript export to `OPSET` and the borrowed operators back into the standard domain, in place."""
    from onnxscript import version_converter

    version_converter.convert_version(model, target_version=OPSET)
    for node in model.graph:
        kind = node.op_type.removeprefix(_BORROWED)
        if node.domain == DOMAIN and node.op_type != kind and kind in _STANDARD:
            node.domain, node.op_type = "", kind
