"""The planned mix of formats: what a budget came to, and what else would be possible. Knows no solver, no graph and no drawing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import yaml

from aiasst.artifacts.recipe import Recipe, WeightFormat

if TYPE_CHECKING:
    from aiasst.quantize.planning.units import Candidate, Unit

Choice = npt.NDArray[np.int64]
"""int64 [units]: the column of each unit's format."""

# What recipes do without looking at a model: (format of all layers, block size of embedding and head in int8), as in int8.yaml,
# int4.yaml with blocks of 64, int4.yaml and int4-fast.yaml. Small blocks come first: large ones become small for few inputs.
_UNIFORM = (
    (WeightFormat(format="int8", block_size=128), 128),
    (WeightFormat(format="int4", block_size=64), 128),
    (WeightFormat(format="int4", block_size=128), 128),
    (WeightFormat(format="int4", block_size=256), 256),
)
_ENDS = ("embed", "lm_head")
# What a recipe's format becomes where it cannot serve (an old graph), and where it would not be smaller.
_FALLBACK = WeightFormat(format="int8", block_size=128)
_FLOAT = "fp32"


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
    tokens: tuple[int, int] | None = None
    """Of a vocabulary that was cut: the first token of the piece, and the one behind its last."""


@dataclass(frozen=True)
class FrontPoint:
    """The best plan of its size."""

    nbytes: int
    """Of the whole model."""
    bits_per_weight: float
    loss: float
    """Predicted KL divergence, nats."""


@dataclass(frozen=True)
class UniformPoint:
    """All layers in one format, embedding and head in int8: what a recipe gives without planning."""

    label: str
    """Format of the layers."""
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
    encoder: bool = False
    """Whether every loss is the relative squared error of hidden states, for want of a KL divergence."""
    token_ms: float | None = None
    """Predicted time a token, where a device was given."""
    uniform: tuple[UniformPoint, ...] = ()
    """What it is compared with; predicted from the same losses as `front`."""


def uniform_points(
    units: Sequence[Unit],
    columns: Sequence[str],
    losses: npt.NDArray[np.float64],
    bytes_of: Callable[[Choice], int],
    bits_of: Callable[[Choice], float],
) -> tuple[UniformPoint, ...]:
    """Sizes and losses of the plans that recipes would make, from the smallest on; of those that come to the same, one.

    Args:
        units: what is planned.
        columns: labels of the formats.
        losses: predicted KL divergence in nats, [units, columns].
        bytes_of: bytes of the whole model by the columns that its units have.
        bits_of: bits per weight of the same.
    """
    found: dict[tuple[int, ...], UniformPoint] = {}
    for spec, head in _UNIFORM:
        ends = WeightFormat(format="int8", block_size=head)
        wanted = [ends if unit.role in _ENDS else spec for unit in units]
        labels = [_fitting(unit, each).label for unit, each in zip(units, wanted, strict=True)]
        choice = np.array([columns.index(label) for label in labels], dtype=np.int64)
        loss = float(losses[np.arange(len(units)), choice].sum())
        found.setdefault(tuple(choice.tolist()), UniformPoint(spec.label, bytes_of(choice), bits_of(choice), loss))
    return tuple(sorted(found.values(), key=lambda point: point.nbytes))


def _fitting(unit: Unit, wanted: WeightFormat) -> Candidate:
    """What a recipe's `wanted` becomes for a unit: in smaller blocks for few inputs; int8 or float where it cannot be."""
    for spec in (wanted, _FALLBACK):
        alike = [
            candidate
            for candidate in unit.candidates
            if (candidate.spec.format, candidate.spec.zero_point) == (spec.format, spec.zero_point)
            and (candidate.spec.block_size or 0) <= (spec.block_size or 0)
        ]
        if alike:
            return max(alike, key=lambda candidate: candidate.spec.block_size or 0)
    return next(candidate for candidate in unit.candidates if candidate.spec.format == _FLOAT)


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
