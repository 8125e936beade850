"""What goes into the place of each weight, as the graph is rewritten. Knows no graph node and no packing.

`rewrite` asks for one weight after the other. Without calibration each is rounded when it is asked for, so that one is in
memory at a time; after calibration it has been rounded already and is read back from the work folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from aiasst.artifacts.recipe import WeightFormat
from aiasst.quantize import formats
from aiasst.quantize.algorithms import Algorithm, InputStatistics
from aiasst.quantize.calibrate.state import WorkState
from aiasst.quantize.grid import Quantized
from aiasst.quantize.inventory import Found
from aiasst.quantize.matrix import FloatMatrix
from aiasst.quantize.plan import Plan
from aiasst.quantize.ranges import InputRange
from aiasst.quantize.weights_file import read_matrix

FloatVector = npt.NDArray[np.float32]


class Contents(Protocol):
    """The new contents of a graph's weights."""

    @property
    def vectors(self) -> Mapping[str, FloatVector]:
        """Initializers (norm scales, biases) that get other numbers of the same shape, float32, by name."""
        ...

    @property
    def ranges(self) -> Mapping[str, InputRange]:
        """Fixed ranges of the inputs of products, by the name of the weight."""
        ...

    def matrix(self, found: Found) -> Quantized | FloatMatrix | None:
        """The weight on the grid of its planned format, or float32 [N, K] where that has none; None: it stays as it is."""
        ...


@dataclass(frozen=True)
class PlainContents:
    """Every weight by itself, rounded when it is asked for."""

    plan: Plan
    algorithm: Algorithm
    statistics: Mapping[str, InputStatistics] = field(default_factory=dict)
    """Of the inputs of the products, by weight name, where there are any."""
    vectors: Mapping[str, FloatVector] = field(default_factory=dict)
    ranges: Mapping[str, InputRange] = field(default_factory=dict)

    def matrix(self, found: Found) -> Quantized | FloatMatrix | None:
        """See `Contents`."""
        spec = self.plan.format_of(found.matrix.name)
        if spec.format == "fp32":
            return None
        return round_weight(weight_rows(found), spec, self.algorithm, self.statistics.get(found.matrix.name))


@dataclass(frozen=True)
class FinishedContents:
    """Weights that a calibration has rounded; those it had no inputs for are rounded by themselves."""

    finished: WorkState
    others: PlainContents

    @cached_property
    def vectors(self) -> Mapping[str, FloatVector]:
        """See `Contents`."""
        return self.finished.vectors()

    @cached_property
    def ranges(self) -> Mapping[str, InputRange]:
        """See `Contents`."""
        return self.finished.ranges()

    def matrix(self, found: Found) -> Quantized | FloatMatrix | None:
        """See `Contents`."""
        if self.finished.holds(found.matrix.name):
            return self.finished.matrix(found.matrix.name)
        return self.others.matrix(found)


def weight_rows(found: Found) -> FloatMatrix:
    """The weight as it is in the source, float32 [N, K]: memory-mapped for as long as the array lives."""
    assert found.value.const_value is not None
    return found.matrix.as_rows(read_matrix(found.value.const_value))


def round_weight(
    rows: FloatMatrix, spec: WeightFormat, algorithm: Algorithm, statistics: InputStatistics | None = None
) -> Quantized | FloatMatrix:
    """Float32 [N, K] on the grid of `spec`; as it is where that has none."""
    grid = formats.load(spec.format).grid(spec)
    return rows if grid is None else algorithm.quantize(rows, grid, statistics)
