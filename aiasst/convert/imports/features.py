"""How large the model's products are by its configuration, and which have a bias: what packed weights are held against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiasst.convert.imports.packed import DAMAGED
from aiasst.errors import CheckpointError


@dataclass(frozen=True)
class Features:
    """One product of the model."""

    inputs: int
    outputs: int
    inputs_first: bool
    """The module keeps its weight as [inputs, outputs] (transformers' Conv1D), not [outputs, inputs]."""
    bias: bool


def features(config: Mapping[str, Any]) -> dict[str, Features]:
    """Module name → its sizes, from the model without memory for its weights.

    Empty where transformers cannot make the model from its configuration: then the exporter will say so, and better.
    """
    import torch
    import transformers
    from transformers.pytorch_utils import Conv1D

    kept = {key: value for key, value in config.items() if key not in ("model_type", "auto_map")}
    try:
        known = transformers.AutoConfig.for_model(config["model_type"], **kept)
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(known)
    # A foreign configuration can fail in any of transformers' constructors.
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError, RuntimeError, OSError):
        return {}
    found: dict[str, Features] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            found[name] = Features(module.in_features, module.out_features, False, module.bias is not None)
        elif isinstance(module, Conv1D):
            found[name] = Features(module.weight.shape[0], module.weight.shape[1], True, module.bias is not None)
    return found


def require_features(name: str, n: int, k: int, wanted: Features | None) -> None:
    """Raise CheckpointError where the model needs other sizes than the packed weight [n, k] of module `name` has."""
    if wanted is not None and (n, k) != (wanted.outputs, wanted.inputs):
        raise CheckpointError(
            f"'{name}' is packed for {k} inputs and {n} outputs, the model has {wanted.inputs} and {wanted.outputs}",
            DAMAGED,
        )
