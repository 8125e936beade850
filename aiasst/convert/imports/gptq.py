"""The layout of GPTQ checkpoints (AutoGPTQ, GPTQModel, AutoRound): words run along the inputs. Knows no file and no configuration.

qweight int32 [K x bits / 32, N], scales [groups, N], qzeros int32 [groups, N x bits / 32], g_idx int32 [K] (may be absent). Format
v1 stores zero points minus one, v2 as they are; github.com/ModelCloud/GPTQModel (checkpoint_format) tells them apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from aiasst.artifacts.grids import ModuleGrid
from aiasst.convert.imports.packed import DAMAGED, Packed, arranged_groups, checked, matrix_shape, require_shape
from aiasst.convert.imports.words import Words, integers, plus_one, words_of
from aiasst.errors import CheckpointError

REQUIRED = ("qweight", "qzeros", "scales")
OPTIONAL = ("g_idx",)


def size(name: str, parts: Mapping[str, npt.NDArray[Any]], bits: int) -> tuple[int, int]:
    """(N, K) of the module `name`.

    Raises:
        CheckpointError: the words hold no whole number of values.
    """
    words, n = matrix_shape(name, "qweight", parts["qweight"])
    k = words * 32 // bits
    if words_of(k, bits) != words:
        raise CheckpointError(f"'{name}' has {words} words a channel, no whole number of {bits}-bit values", DAMAGED)
    return n, k


def unpack(name: str, parts: Mapping[str, npt.NDArray[Any]], *, bits: int, group_size: int, minus_one: bool) -> Packed:
    """The integers and the grid of one module.

    Args:
        name: Of the module, for messages.
        parts: Its tensors by their last name; scales in float32.
        bits: 2, 3, 4 or 8.
        group_size: Inputs with one scale; -1 = all.
        minus_one: Zero points are stored minus one (v1).

    Raises:
        CheckpointError: the sizes do not agree.
    """
    n, k = size(name, parts, bits)
    together = group_size if 0 < group_size < k else k
    require_shape(
        name, "zero points", matrix_shape(name, "qzeros", parts["qzeros"]), (-(-k // together), words_of(n, bits))
    )
    groups = None
    if "g_idx" in parts:
        require_shape(name, "group indices", parts["g_idx"].shape, (k,))
        groups = arranged_groups(name, parts["g_idx"].astype(np.int32), together)
    zeros = _zero_points(parts["qzeros"], bits, n, minus_one=minus_one)
    scales = np.ascontiguousarray(parts["scales"].T)
    return checked(name, integers(parts["qweight"].T, bits, k), ModuleGrid(bits, together, scales, zeros, groups))


def _zero_points(words: Words, bits: int, n: int, *, minus_one: bool) -> npt.NDArray[np.uint8]:
    """uint8 [N, groups]."""
    if minus_one and bits != 3:
        words = plus_one(words, bits)
    zeros = integers(words, bits, n)
    if minus_one and bits == 3:
        zeros = (zeros + np.uint8(1)) & np.uint8(7)
    return np.ascontiguousarray(zeros.T)
