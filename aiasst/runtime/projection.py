"""What vectors of texts go through behind pooling: the Dense modules of sentence-transformers. Knows no session and no tokens.

The formulas are those of sentence-transformers (modules/dense.py there) and of torch.nn for the activations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aiasst.artifacts.encoding import Encoding, Projection, ProjectionActivation
from aiasst.artifacts.model_folder import inside
from aiasst.errors import ArtifactError
from aiasst.runtime.pooling import normalized, pool

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Linear:
    """A projection with its numbers."""

    declared: Projection
    weight: Floats
    """float32 [outputs, inputs]"""
    bias: Floats | None
    """float32 [outputs]"""
    residual: Floats | None
    """float32 [outputs, inputs], where a residual changes its size."""

    def __call__(self, vectors: Floats) -> Floats:
        """float32 [texts, inputs] to [texts, outputs]."""
        given = normalized(vectors) if self.declared.unit_input else vectors
        made = given @ self.weight.T
        if self.bias is not None:
            made = made + self.bias
        made = ACTIVATIONS[self.declared.activation](made)
        if self.declared.residual:
            made = made + (given if self.residual is None else given @ self.residual.T)
        return made


class TextVectors:
    """Hidden states to the vectors of texts, as a folder declares: pooled, projected, normalized."""

    def __init__(self, encoding: Encoding, projections: tuple[Linear, ...] = ()) -> None:
        self.encoding = encoding
        self.projections = projections

    @classmethod
    def open(cls, folder: Path, encoding: Encoding) -> TextVectors:
        """With the numbers of the projections that lie in a model folder.

        Raises:
            ArtifactError: they are missing, or of another shape than declared.
        """
        return cls(encoding, tuple(_read(folder, declared) for declared in encoding.projections))

    def __call__(self, hidden: Floats, mask: Floats) -> Floats:
        """Hidden states float32 [texts, tokens, size] and their mask [texts, tokens] (see `pool`) to float32 [texts, size]."""
        vectors = pool(hidden, mask, self.encoding.pooling)
        for projection in self.projections:
            vectors = projection(vectors)
        return normalized(vectors) if self.encoding.normalize else vectors


def _read(folder: Path, declared: Projection) -> Linear:
    found = {name: _array(inside(folder, f"{declared.folder}/{name}"), shape) for name, shape in declared.files.items()}
    return Linear(declared, found["weight.npy"], found.get("bias.npy"), found.get("residual.npy"))


def _array(path: Path, shape: tuple[int, ...]) -> Floats:
    hint = "convert the checkpoint again"
    try:
        # Mapped, so that what the header announces is compared before memory is taken for it.
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}", hint) from None
    if mapped.shape != shape or mapped.dtype != np.float32:
        raise ArtifactError(f"{path} holds {mapped.dtype} {mapped.shape}, not float32 {shape}", hint)
    return np.array(mapped, np.float32)


def _sigmoid(x: Floats) -> Floats:
    # Written with tanh, which never overflows.
    made: Floats = np.float32(0.5) * (1 + np.tanh(np.float32(0.5) * x))
    return made


_ERF = np.vectorize(math.erf, otypes=[np.float32])


def _gelu(x: Floats) -> Floats:
    """x · Φ(x), exactly (Hendrycks and Gimpel, arXiv 1606.08415)."""
    made: Floats = np.float32(0.5) * x * (1 + _ERF(x / np.float32(math.sqrt(2))))
    return made


def _relu(x: Floats) -> Floats:
    return np.maximum(x, np.float32(0))


def _silu(x: Floats) -> Floats:
    return x * _sigmoid(x)


def _identity(x: Floats) -> Floats:
    return x


def _tanh(x: Floats) -> Floats:
    return np.tanh(x)


ACTIVATIONS: Mapping[ProjectionActivation, Callable[[Floats], Floats]] = {
    "identity": _identity, "tanh": _tanh, "sigmoid": _sigmoid, "relu": _relu, "gelu": _gelu, "silu": _silu,
}  # fmt: skip
