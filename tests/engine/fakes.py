"""A session whose answers depend on every token in the cache row: a wrong copy, move or length changes the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from aiasst.engine.requests import Guide, Sampling

VOCABULARY = 50


@dataclass
class Drawn:
    """A row to draw a token for, without an engine."""

    sampling: Sampling
    tokens: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    prompt_length: int = 0
    generator: np.random.Generator = field(default_factory=np.random.default_rng)
    guide: Guide | None = None


class FakeDecoder:
    """Writes each token into the cache and computes the next one from all tokens that it reads there."""

    layers = 2
    kv_heads = 1
    head_dim = 2
    vocab_size = VOCABULARY
    cache_dtype = np.dtype(np.float32)

    def __init__(self, context_length: int = 64, weight_bytes: int = 0) -> None:
        self.context_length = context_length
        self.weight_bytes = weight_bytes
        self.shapes: list[tuple[int, int]] = []

    def step(
        self, ids: np.ndarray, lengths: Sequence[int], cache_rows: Sequence[np.ndarray], all_logits: bool = False
    ) -> np.ndarray:
        rows, new = ids.shape
        assert len(cache_rows) == 2 * self.layers and len(lengths) == rows
        assert new == 1 or rows == 1
        self.shapes.append((rows, new))
        logits = np.zeros((rows, new, self.vocab_size), np.float32)
        for row, length in enumerate(lengths):
            assert new <= length <= cache_rows[0].shape[2]
            for array in cache_rows:
                array[row, :, length - new : length] = ids[row][None, :, None]
            read = [array[row, 0, :length, 1].astype(np.int64).tolist() for array in cache_rows]
            assert all(tokens == read[0] for tokens in read)
            for place in range(0 if all_logits else new - 1, new):
                logits[row, place] = self.next_logits(read[0][: length - new + place + 1])
        return logits if all_logits else logits[:, -1]

    def next_logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits [vocabulary] after these tokens."""
        return next_logits(tokens)


def next_logits(tokens: Sequence[int]) -> np.ndarray:
    """Logits [vocabulary] that only this sequence of tokens gives."""
    seed = 0
    for token in tokens:
        seed = (seed * 1_000_003 + token + 1) % (2**61 - 1)
    return np.random.default_rng(seed).normal(size=VOCABULARY).astype(np.float32) * 3


class Copier(FakeDecoder):
    """Likes to say what it said `PERIOD` tokens ago, so that drafts from the text often hold and often do not."""

    PERIOD = 6
    LIKES = 12.0

    def next_logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits [vocabulary] after these tokens."""
        logits = next_logits(tokens)
        if len(tokens) >= self.PERIOD:
            logits[tokens[-self.PERIOD]] += self.LIKES
        return logits
