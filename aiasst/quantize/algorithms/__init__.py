"""Algorithms: how a matrix is brought onto a grid. One file each, found by its name; knows no format and no graph.

An algorithm is a module with these names:

    NEEDS: what it must know of the inputs: "nothing", their "energy" or their whole "hessian"
    EQUALIZES: bool     whether scales are folded into the norm before the products first
    PROPAGATES: bool    whether its target makes up for the error of the layers before
    def quantize(weight: FloatMatrix, grid: Grid, statistics: InputStatistics | None = None) -> Quantized

`weight` is float32 [N, K], possibly memory-mapped and transposed: read it in chunks, do not copy it whole.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, cast

import numpy as np
import numpy.typing as npt

from aiasst.errors import ArtifactError
from aiasst.quantize.grid import Grid, Quantized
from aiasst.quantize.matrix import FloatMatrix

if TYPE_CHECKING:
    from aiasst.quantize.hessian import Factors

Need = Literal["nothing", "energy", "hessian"]


@dataclass(frozen=True)
class InputStatistics:
    """What calibration saw of the activations that enter a product."""

    rows: int
    """Tokens seen."""
    energy: npt.NDArray[np.float32]
    """Mean square of each input channel, float32 [K]."""
    hessian: FloatMatrix | None = None
    """Mean of x xT over the tokens, float32 [K, K]: half the second derivative of a row's squared output error."""
    factors: Factors | None = None
    """Of `hessian`: who brings a weight in pieces of rows gives the same to each. None: factorized anew."""


class Algorithm(Protocol):
    """The agreed names of an algorithm's module."""

    NEEDS: Need
    EQUALIZES: bool
    PROPAGATES: bool

    def quantize(self, weight: FloatMatrix, grid: Grid, statistics: InputStatistics | None = None) -> Quantized:
        """Bring float32 [N, K] onto `grid`."""
        ...


def names() -> list[str]:
    """Every algorithm there is."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> Algorithm:
    """The algorithm called `name`.

    Raises:
        ArtifactError: there is none of this name.
    """
    if name not in names():
        raise ArtifactError(
            f"there is no quantization algorithm '{name}'", f"set algorithm to one of: {', '.join(names())}"
        )
    return cast(Algorithm, importlib.import_module(f"{__name__}.{name}"))
