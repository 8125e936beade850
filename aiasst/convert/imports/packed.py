"""One packed matrix as the layouts unpack it: integers and their grid, and the float weights they stand for. Knows no layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aiasst.artifacts.grids import ModuleGrid
from aiasst.errors import CheckpointError, UnsupportedModelError

Floats = npt.NDArray[np.float32]

DAMAGED = "the checkpoint is damaged or of a newer form: fetch it again, or convert the unquantized model"
UNQUANTIZED = "convert the unquantized model and quantize it here: aiasst quantize"

SMALLEST_GROUP = 32
"""Of inputs with one scale: finer grids have no fast kernel."""

# Weights that are multiplied at once, so that little more than the result is in memory.
_CHUNK_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class Packed:
    """A matrix [N, K] on its grid."""

    values: npt.NDArray[np.uint8]
    """uint8 [N, K], 0 … 2^bits - 1."""
    grid: ModuleGrid

    def dequantize(self) -> Floats:
        """float32 [N, K]: (value - zero point) x scale.

        A difference of at most 9 bits times a scale of at most 11 (float16) is exact in float32. With a float32 scale the product
        is rounded, far below half a step: dividing by the scale finds the integer again in either case.
        """
        n, k = self.values.shape
        columns = self.grid.group_of_inputs(k)
        weights = np.empty((n, k), dtype=np.float32)
        step = max(1, _CHUNK_ELEMENTS // k)
        for start in range(0, n, step):
            rows = slice(start, start + step)
            np.subtract(
                self.values[rows], self.grid.zero_points[rows][:, columns], dtype=np.float32, out=weights[rows]
            )  # fmt: skip
            weights[rows] *= self.grid.scales[rows][:, columns]
        return weights


def checked(name: str, values: npt.NDArray[np.uint8], grid: ModuleGrid) -> Packed:
    """A matrix whose sizes agree and whose scales are numbers.

    Raises:
        CheckpointError: they do not.
        UnsupportedModelError: its groups are too fine or too odd for any kernel here.
    """
    n, k = values.shape
    groups = -(-k // grid.group_size)
    for what, array in (("scales", grid.scales), ("zero points", grid.zero_points)):
        require_shape(name, what, array.shape, (n, groups))
    if grid.scales.dtype != np.float32:
        raise CheckpointError(f"'{name}' has scales of type {grid.scales.dtype}", DAMAGED)
    with np.errstate(over="ignore", invalid="ignore"):
        largest = np.float32(1 << grid.bits) * np.abs(grid.scales)
    if not np.isfinite(largest).all():
        raise CheckpointError(f"'{name}' has scales that are no finite numbers", DAMAGED)
    if grid.group_size < k and grid.group_size % SMALLEST_GROUP:
        raise UnsupportedModelError(
            f"'{name}' has a scale for every {grid.group_size} inputs, and kernels here take multiples of {SMALLEST_GROUP}",
            UNQUANTIZED,
        )
    return Packed(values, grid)


def require_shape(name: str, what: str, found: Sequence[int], wanted: Sequence[int]) -> None:
    """Raise CheckpointError where a tensor of the module `name` has another shape than the others ask for."""
    if tuple(found) != tuple(wanted):
        raise CheckpointError(f"'{name}' has {what} of shape {tuple(found)}, its weights need {tuple(wanted)}", DAMAGED)


def matrix_shape(name: str, what: str, array: npt.NDArray[Any], dtype: npt.DTypeLike = np.int32) -> tuple[int, int]:
    """The shape of a matrix of integers of the module `name`; CheckpointError where it is none, or an empty one."""
    if array.ndim != 2 or array.dtype != dtype or not array.size:
        raise CheckpointError(
            f"the {what} of '{name}' is {array.dtype} of shape {array.shape}, not a matrix of {np.dtype(dtype)}",
            DAMAGED,
        )
    return array.shape[0], array.shape[1]


def arranged_groups(name: str, groups: npt.NDArray[np.int32], group_size: int) -> npt.NDArray[np.int32] | None:
    """The group of each input (g_idx) where they are not in order, None where they are.

    Act-order (desc_act) sorts inputs by importance before they are grouped. Each group must be full, so that the inputs can be
    put back into the order of their groups.

    Raises:
        CheckpointError: a group has more or fewer inputs than the others.
    """
    ordered = np.arange(len(groups), dtype=np.int32) // group_size
    # compressed-tensors says -1 where there is no order.
    if np.array_equal(groups, ordered) or (groups == -1).all():
        return None
    if not np.array_equal(np.sort(groups), ordered):
        raise CheckpointError(
            f"'{name}' spreads its {len(groups)} inputs over groups of other sizes than {group_size}", DAMAGED
        )
    return groups.astype(np.int32)
