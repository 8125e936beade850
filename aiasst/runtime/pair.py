"""Two forms of one model as one decoder: each run goes through the form that is faster for its size. Chooses no crossover.

Four bits a weight read the fewest bytes and win with few rows; w8a8 multiplies twice as fast and wins with many (prompts, many
sequences at once). Both forms write the same keys and values, so that one cache serves them in turn: whoever ran last, the
other goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from aiasst.errors import ArtifactError
from aiasst.runtime.session import DecoderSession

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


class PairedSession:
    """A `DecoderSession` for few rows and its twin for many, on a cache that the caller owns; used like either of them."""

    def __init__(self, first: DecoderSession, twin: DecoderSession, *, from_rows: int) -> None:
        """Runs of `from_rows` rows or more (sequences times new tokens of each) go through `twin`.

        Raises:
            ArtifactError: the two are not forms of one model: caches, vocabularies or contexts differ.
            ValueError: `from_rows` is below 1 (a mistake of the caller).
        """
        if from_rows < 1:
            raise ValueError(f"a run has a row at least, not {from_rows}")
        if _interface(first) != _interface(twin):
            raise ArtifactError(
                f"{first.graph.name} and {twin.graph.name} are not two forms of one model: their caches or vocabularies differ",
                "quantize the original again: aiasst quantize DIR --bits 4 --twin",
            )
        self.first = first
        self.twin = twin
        self.from_rows = from_rows
        self.layers = first.layers
        self.kv_heads = first.kv_heads
        self.head_dim = first.head_dim
        self.vocab_size = first.vocab_size
        self.context_length = first.context_length
        self.cache_dtype: np.dtype[Any] = first.cache_dtype
        self.weight_bytes = first.weight_bytes + twin.weight_bytes
        """Of both: each holds its own copy in the order of its kernels, of what the files share as well."""

    def step(
        self, ids: Ids, lengths: Sequence[int], cache_rows: Sequence[npt.NDArray[Any]], all_logits: bool = False
    ) -> Floats:
        """As `DecoderSession.step`, through the form that `ids` [rows, new] are for; with `all_logits` always through the first.

        Tokens are chosen by all logits where a draft is verified: by the form that would have chosen them one by one.
        """
        form = self.twin if ids.size >= self.from_rows and not all_logits else self.first
        return form.step(ids, lengths, cache_rows, all_logits)


def _interface(session: DecoderSession) -> tuple[object, ...]:
    """All that the owner of a cache and reader of logits sees of a session."""
    return (
        session.layers,
        session.kv_heads,
        session.head_dim,
        session.cache_dtype,
        session.vocab_size,
        session.context_length,
    )
