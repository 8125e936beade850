"""A weight matrix as the whole stage sees it: N rows (output channels) of K inputs. Knows no format and no graph library.

ONNX stores the weight of a MatMul as [K, N], and embeddings and transposed weights as [N, K]. Quantization works along K:
algorithms and formats always get [N, K], as a view where the file has the other order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aiasst.artifacts.model_folder import Role

FloatMatrix = npt.NDArray[np.float32]
ByteMatrix = npt.NDArray[np.uint8]

# A tile of float32 fits the second-level cache of any CPU.
_TILE = 256


@dataclass(frozen=True)
class Matrix:
    """One weight: its name and place in the model, its size, and what the graph does with it."""

    name: str
    role: Role
    layer: int | None
    n: int
    """Output channels of the product; rows of the embedding."""
    k: int
    """Input channels of the product; width of the embedding."""
    rows_first: bool
    """The file has [N, K] (embeddings, transposed weights), not [K, N]."""
    multiplies: bool = True
    """Some product uses it."""
    looks_up: bool = False
    """Some embedding lookup uses it; with `multiplies` as well, the head is tied."""
    first_row: int = 0
    """Of a vocabulary that was cut: the token of its first row."""
    vocabulary: int | None = None
    """Rows of all pieces of such a vocabulary together; None for a whole matrix."""

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return self.n * self.k

    @property
    def tied(self) -> bool:
        """The same bytes serve the embedding and the head."""
        return self.multiplies and self.looks_up

    @property
    def planned_role(self) -> Role:
        """The role that decides its format: a tied matrix is planned as the head, where errors cost more."""
        return "lm_head" if self.tied else self.role

    @property
    def planned_rows(self) -> tuple[int, int]:
        """(behind its last row, rows of the whole vocabulary), as a recipe's rule asks for them."""
        return self.first_row + self.n, self.vocabulary or self.n

    @property
    def stored_shape(self) -> tuple[int, int]:
        """Shape in the float file."""
        return (self.n, self.k) if self.rows_first else (self.k, self.n)

    def as_rows(self, stored: FloatMatrix) -> FloatMatrix:
        """[N, K] view of the matrix as stored."""
        return stored if self.rows_first else stored.T

    def as_stored(self, rows: FloatMatrix) -> FloatMatrix:
        """The inverse of `as_rows`."""
        return rows if self.rows_first else rows.T


def copy_matrix(source: npt.NDArray[Any], target: npt.NDArray[Any]) -> None:
    """Copy [N, K] to a C-contiguous `target` of the same shape, ten times as fast as numpy where `source` lies transposed.

    Walks in tiles: with whole rows each number would come from another page of memory.
    """
    if source.strides[0] >= source.strides[1]:
        target[:] = source
        return
    rows, columns = source.shape
    for row in range(0, rows, _TILE):
        for column in range(0, columns, _TILE):
            tile = source.T[column : column + _TILE, row : row + _TILE].copy()
            target[row : row + _TILE, column : column + _TILE] = tile.T


@dataclass(frozen=True)
class LeftAlone:
    """A constant of a product or a lookup that cannot be quantized, and why."""

    name: str
    reason: str
