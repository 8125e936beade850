"""The layouts of compressed-tensors checkpoints: integers packed along the inputs, or int8. Knows no file and no configuration.

pack-quantized: weight_packed int32 [N, K x bits / 32], weight_shape (N, K), weight_scale [N, groups], and where the grid is not
symmetric weight_zero_point, packed along the outputs (int32 [N x bits / 32, groups]) or int8 [N, groups].
int-quantized: weight int8 [N, K], weight_scale [N, 1], weight_zero_point int8 [N, 1].
Integers are signed; packed ones are stored plus 2^(bits-1) (github.com/neuralmagic/compressed-tensors).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from aiasst.artifacts.grids import ModuleGrid
from aiasst.convert.imports.packed import DAMAGED, Packed, arranged_groups, checked, matrix_shape, require_shape
from aiasst.convert.imports.words import integers, words_of
from aiasst.errors import CheckpointError

PACKED = "weight_packed"
PLAIN = "weight"
REQUIRED = ("weight_scale",)
OPTIONAL = ("weight_zero_point", "weight_shape", "weight_g_idx")


def size(name: str, parts: Mapping[str, npt.NDArray[Any]], bits: int) -> tuple[int, int]:
    """(N, K) of the module `name`.

    Raises:
        CheckpointError: it says none, or one that its weights do not have.
    """
    if PACKED not in parts:
        if PLAIN not in parts:
            raise CheckpointError(f"'{name}' has a scale and no weights", DAMAGED)
        n, k = matrix_shape(name, PLAIN, parts[PLAIN], np.int8)
        return n, k
    matrix_shape(name, PACKED, parts[PACKED])
    if "weight_shape" not in parts or parts["weight_shape"].shape != (2,):
        raise CheckpointError(f"'{name}' has packed weights without a weight_shape", DAMAGED)
    n, k = (int(count) for count in parts["weight_shape"])
    require_shape(name, "packed weights", parts[PACKED].shape, (n, words_of(k, bits)))
    return n, k


def unpack(
    name: str, parts: Mapping[str, npt.NDArray[Any]], *, bits: int, group_size: int | None, symmetric: bool
) -> Packed:
    """The integers and the grid of one module, signed values moved up to 0 … 2^bits - 1.

    Args:
        name: Of the module, for messages.
        parts: Its tensors by their last name; weight_scale in float32.
        bits: 2, 4 or 8.
        group_size: Inputs with one scale; None or -1 = all.
        symmetric: Whether there are no zero points.

    Raises:
        CheckpointError: the sizes do not agree, or something is missing.
    """
    n, k = size(name, parts, bits)
    values = integers(parts[PACKED], bits, k) if PACKED in parts else _raised(name, parts[PLAIN], bits)
    together = group_size if group_size is not None and 0 < group_size < k else k
    count = -(-k // together)
    scales = parts["weight_scale"]
    if scales.size == 1:
        # One scale for the whole matrix.
        scales = np.broadcast_to(scales.reshape(1, 1), (n, count))
    elif scales.ndim == 1 and count == 1:
        scales = scales[:, None]
    zeros = _zero_points(name, parts.get("weight_zero_point"), bits, n, count, symmetric=symmetric)
    groups = None
    if "weight_g_idx" in parts:
        require_shape(name, "group indices", parts["weight_g_idx"].shape, (k,))
        groups = arranged_groups(name, parts["weight_g_idx"].astype(np.int32), together)
    return checked(name, values, ModuleGrid(bits, together, np.ascontiguousarray(scales), zeros, groups))


def _raised(name: str, weight: npt.NDArray[Any], bits: int) -> npt.NDArray[np.uint8]:
    middle = 1 << (bits - 1)
    if weight.size and not (-middle <= int(weight.min()) and int(weight.max()) < middle):
        raise CheckpointError(f"'{name}' holds integers of more than {bits} bits", DAMAGED)
    return (weight.astype(np.int16) + middle).astype(np.uint8)


def _zero_points(
    name: str, stored: npt.NDArray[Any] | None, bits: int, n: int, groups: int, *, symmetric: bool
) -> npt.NDArray[np.uint8]:
    """uint8 [N, groups]."""
    middle = 1 << (bits - 1)
    if stored is None:
        if not symmetric:
            raise CheckpointError(f"'{name}' lacks the zero points that its configuration announces", DAMAGED)
        return np.full((n, groups), middle, dtype=np.uint8)
    if stored.dtype == np.int32 and stored.shape == (words_of(n, bits), groups):
        return np.ascontiguousarray(integers(stored.T, bits, n).T)
    if stored.size == 1:
        stored = np.broadcast_to(stored.reshape(1, 1), (n, groups))
    elif stored.ndim == 1 and groups == 1:
        stored = stored[:, None]
    require_shape(name, "zero points", stored.shape, (n, groups))
    moved = stored.astype(np.int64) + middle
    if not ((moved >= 0) & (moved < 1 << bits)).all():
        raise CheckpointError(f"'{name}' has zero points of more than {bits} bits", DAMAGED)
    return moved.astype(np.uint8)
