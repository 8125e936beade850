"""The planned mix of formats: what a budget came to, and what else would be possible. Knows no solver, no graph and no drawing."""

from __future__ import annotations

from dataclasses import dataclass

import yaml

from aiasst.artifacts.recipe import Recipe


@dataclass(frozen=True)
class Cell:
    """One unit of the plan."""

    role: str
    layer: int | None
    label: str
    """Format."""
    bits: float
    """Per weight, scales and padding included."""
    nbytes: int
    loss: float
    """Predicted KL divergence that it causes, nats."""


@dataclass(frozen=True)
class FrontPoint:
    """The best plan of its size."""

    nbytes: int
    """Of the whole model."""
    bits_per_weight: float
    loss: float
    """Predicted KL divergence, nats."""


@dataclass(frozen=True)
class PlannedMix:
    """A plan under a budget."""

    recipe: Recipe
    """Reproduces it."""
    cells: tuple[Cell, ...]
    front: tuple[FrontPoint, ...]
    """From the smallest on."""
    nbytes: int
    """Of the whole model, as far as can be told before it is written."""
    bits_per_weight: float
    predicted_kl: float
    """Nats a token, on the calibration text."""
    predicted_top1: float
    """Top-1 agreement, 0 … 1."""
    measured: bool
    """Whether the plan as a whole was measured (with quick rounding) for that prediction; else it is a sum over its units."""
    token_ms: float | None = None
    """Predicted time a token, where a device was given."""


def recipe_yaml(recipe: Recipe) -> str:
    """The recipe as the YAML file that `--recipe` reads."""
    lines = [
        f"# {recipe.name}: {recipe.description}.",
        "# What the weights of this folder were made by; on the same model it gives the same again:",
        "#     aiasst quantize DIR --recipe recipe.yaml",
        "# Every key is explained in recipes/int4.yaml.",
    ]
    document = recipe.model_dump(mode="json", exclude_none=True)
    for rule in document["rules"]:
        if not rule.get("roles"):
            rule.pop("roles", None)
    return "\n".join(lines) + "\n" + yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=120)
