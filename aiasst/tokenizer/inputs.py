"""Texts and pairs of texts as an encoder reads them: ids, and what each token is of. Knows no model.

A text that is longer than the model reads is cut as the tokenizers library cuts (the longer one of a pair first, special tokens
stay), and how long it was is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aiasst.tokenizer import Tokenizer

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class EncoderInput:
    """One text, or pair of texts, in tokens."""

    ids: Ids
    """int64 [tokens]"""
    types: Ids
    """int64 [tokens]: 1 for a token of the second text, where the tokenizer tells them apart."""
    offsets: tuple[tuple[int, int], ...]
    """First character of each token in its text, and the one behind its last."""
    special: tuple[bool, ...]
    """Whether a token was added by the tokenizer."""
    total: int
    """Tokens that the text has; more than there are `ids` where it was cut."""

    @property
    def is_cut(self) -> bool:
        """Whether the model does not see the whole text."""
        return self.total > len(self.ids)


class InputEncoder:
    """A tokenizer that cuts at `longest` tokens. The tokenizer is its own from then on."""

    def __init__(self, tokenizer: Tokenizer, longest: int) -> None:
        self.tokenizer = tokenizer
        self.longest = longest
        self._backend = tokenizer.backend
        self._backend.enable_truncation(longest, strategy="longest_first")

    def encode(self, texts: Sequence[str | tuple[str, str]]) -> list[EncoderInput]:
        """Texts, or (first, second) pairs, in tokens."""
        encodings = self._backend.encode_batch(list(texts))
        totals = [len(encoding.ids) for encoding in encodings]
        cut = [index for index, encoding in enumerate(encodings) if encoding.overflowing]
        if cut:
            # The library tells that it cut, not how much.
            self._backend.no_truncation()
            for index, whole in zip(cut, self._backend.encode_batch([texts[index] for index in cut]), strict=True):
                totals[index] = len(whole.ids)
            self._backend.enable_truncation(self.longest, strategy="longest_first")
        return [_input(encoding, total) for encoding, total in zip(encodings, totals, strict=True)]


def _input(encoding: Any, total: int) -> EncoderInput:
    return EncoderInput(
        ids=np.asarray(encoding.ids, np.int64),
        types=np.asarray(encoding.type_ids, np.int64),
        offsets=tuple(encoding.offsets),
        special=tuple(map(bool, encoding.special_tokens_mask)),
        total=total,
    )
