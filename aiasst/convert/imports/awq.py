"""The layout of AWQ checkpoints ("gemm"): words run along the outputs, interleaved. Knows no file and no configuration.

qweight int32 [K, N / 8], scales [groups, N], qzeros int32 [groups, N / 8]. Place i of a word holds output ORDER[i] of its eight
(github.com/casper-hansen/AutoAWQ, WQLinear_GEMM).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from aiasst.artifacts.grids import ModuleGrid
from aiasst.convert.imports.packed import Packed, checked, matrix_shape, require_shape
from aiasst.convert.imports.words import Words, integers

REQUIRED = ("qweight", "qzeros", "scales")
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
BITS = 4


def size(name: str, parts: Mapping[str, npt.NDArray[Any]]) -> tuple[int, int]:
    """(N, K) of the module `name`."""
    k, words = matrix_shape(name, "qweight", parts["qweight"])
    return words * len(ORDER), k


def unpack(name: str, parts: Mapping[str, npt.NDArray[Any]], *, group_size: int) -> Packed:
    """The integers and the grid of one module; see gptq.unpack.

    Raises:
        CheckpointError: the sizes do not agree.
    """
    n, k = size(name, parts)
    together = group_size if 0 < group_size < k else k
    require_shape(
        name, "zero points", matrix_shape(name, "qzeros", parts["qzeros"]), (-(-k // together), n // len(ORDER))
    )
    scales = np.ascontiguousarray(parts["scales"].T)
    grid = ModuleGrid(BITS, together, scales, np.ascontiguousarray(_outputs(parts["qzeros"]).T))
    return checked(name, np.ascontiguousarray(_outputs(parts["qweight"]).T), grid)


def _outputs(words: Words) -> npt.NDArray[np.uint8]:
    """uint8 [rows, N] in the order of the outputs."""
    rows, columns = words.shape
    stored = integers(words, BITS, columns * len(ORDER)).reshape(rows, columns, len(ORDER))
    return stored[:, :, np.argsort(ORDER)].reshape(rows, -1)
