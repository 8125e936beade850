"""Formats: one precision each, from packed bytes to graph nodes. One file each, found by its name; knows no algorithm.

A format is a module with one name, `FORMAT`, an object that answers the questions of `Format`.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
import numpy.typing as npt

from aiasst.artifacts.recipe import WeightFormat
from aiasst.quantize.grid import Grid, Quantized
from aiasst.quantize.matrix import FloatMatrix, Matrix

if TYPE_CHECKING:
    import onnx_ir as ir

    from aiasst.quantize.emit import Emitter, PackedWeight


@dataclass(frozen=True)
class Part:
    """One tensor of a packed matrix; its name in the file is the weight's stem + `suffix`."""

    suffix: str
    array: npt.NDArray[np.generic]


class Format(Protocol):
    """What a format knows. `spec` is the format with its options as a recipe names it."""

    fuses_bias: bool
    """Whether `product` takes the bias in, at no cost."""

    def unfit(self, spec: WeightFormat, matrix: Matrix, opset: int) -> str:
        """Why `matrix` in a graph of this opset cannot have this format; empty when it can."""
        ...

    def nbytes(self, spec: WeightFormat, matrix: Matrix) -> int:
        """Bytes that the packed parts take."""
        ...

    def grid(self, spec: WeightFormat) -> Grid | None:
        """The grid that an algorithm has to round to; None: the format keeps floating point."""
        ...

    def pack(self, spec: WeightFormat, matrix: Matrix, content: Quantized | FloatMatrix) -> tuple[Part, ...]:
        """Lay the matrix [N, K] (on the grid, or in float32 where there is none) out as the operators want it."""
        ...

    def unpack(self, spec: WeightFormat, matrix: Matrix, parts: tuple[Part, ...]) -> FloatMatrix:
        """The weights float32 [N, K] that the packed parts stand for: what the operators compute with."""
        ...

    def product(
        self, emit: Emitter, spec: WeightFormat, packed: PackedWeight, x: ir.Value, bias: ir.Value | None, name: str
    ) -> ir.Value:
        """Nodes for x [..., K] times the matrix (+ bias [N]) → [..., N]."""
        ...

    def lookup(self, emit: Emitter, spec: WeightFormat, packed: PackedWeight, ids: ir.Value, name: str) -> ir.Value:
        """Nodes for rows `ids` [...] of the matrix → [..., K]."""
        ...


def names() -> list[str]:
    """Every format there is."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> Format:
    """The format called `name`, one of `names()`."""
    return cast(Format, importlib.import_module(f"{__name__}.{name}").FORMAT)
