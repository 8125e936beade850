"""Hidden states of the tokens of texts into one vector a text. Arrays in, arrays out; knows no session and no file.

The names and formulas are those of sentence-transformers (modules/pooling.py there).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
_SMALLEST_LENGTH = np.float32(1e-12)


def pool(hidden: Floats, mask: Floats, modes: Sequence[str]) -> Floats:
    """Pool by each of `modes` (keys of POOLINGS), side by side.

    Args:
        hidden: float32 [texts, tokens, size].
        mask: float32 [texts, tokens], 1 for a token, 0 for padding behind it and for a prompt before it that does not count.
        modes: at least one.

    Returns:
        float32 [texts, modes x size].
    """
    return np.concatenate([POOLINGS[mode](hidden, mask) for mode in modes], axis=1)


def normalized(vectors: Floats) -> Floats:
    """Each row divided by its length; a row of zeros stays one."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Floats = vectors / np.maximum(length, _SMALLEST_LENGTH)
    return unit


def _sum(hidden: Floats, weights: Floats) -> Floats:
    total: Floats = (weights[:, None] @ hidden)[:, 0]
    return total


def _mean(hidden: Floats, mask: Floats) -> Floats:
    pooled: Floats = _sum(hidden, mask) / mask.sum(axis=1, keepdims=True)
    return pooled


def _weighted_mean(hidden: Floats, mask: Floats) -> Floats:
    """Later tokens weigh more (SGPT, Muennighoff 2022)."""
    weights = mask * np.arange(1, mask.shape[1] + 1, dtype=np.float32)
    pooled: Floats = _sum(hidden, weights) / weights.sum(axis=1, keepdims=True)
    return pooled


def _mean_sqrt_len(hidden: Floats, mask: Floats) -> Floats:
    pooled: Floats = _sum(hidden, mask) / np.sqrt(mask.sum(axis=1, keepdims=True))
    return pooled


def _max(hidden: Floats, mask: Floats) -> Floats:
    pooled: Floats = np.where(mask[:, :, None] > 0, hidden, np.float32(-np.inf)).max(axis=1)
    return pooled


def _first(hidden: Floats, mask: Floats) -> Floats:
    pooled: Floats = hidden[np.arange(len(hidden)), mask.argmax(axis=1)]
    return pooled


def _last(hidden: Floats, mask: Floats) -> Floats:
    pooled: Floats = hidden[np.arange(len(hidden)), mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)]
    return pooled


POOLINGS: Mapping[str, Callable[[Floats, Floats], Floats]] = {
    "mean": _mean, "cls": _first, "max": _max, "mean_sqrt_len_tokens": _mean_sqrt_len,
    "weightedmean": _weighted_mean, "lasttoken": _last,
}  # fmt: skip
"""Name, as sentence-transformers has it → pooling of [texts, tokens, size] and its mask into [texts, size]."""
