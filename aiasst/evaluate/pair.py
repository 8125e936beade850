"""Two forms of one decoder, measured as they are used: the second reads a window's context, the first predicts what follows.

The forms are opened one after the other. What the second has read waits on disk in between: keys and values of the contexts,
which any form of the model can go on from. Knows no card and no model folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aiasst.evaluate.perplexity import (
    Decoder,
    Floats,
    Ids,
    context_tokens,
    empty_cache,
    predictions,
    read_context,
)

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class KeptContexts:
    """Caches behind the contexts of some windows, one file each in a folder."""

    folder: Path

    def write(self, window: Ids, cache: Sequence[Array]) -> None:
        """Keep what was read of `window` into `cache`. Raises OSError: the disk is full."""
        read = np.stack([array[0, :, : context_tokens(window)] for array in cache])
        np.save(self._file(window), read, allow_pickle=False)

    def read(self, window: Ids, cache: Sequence[Array]) -> None:
        """Put it into the first tokens of `cache`. Raises OSError: nothing was kept of this window."""
        for array, kept in zip(cache, np.load(self._file(window), allow_pickle=False), strict=True):
            array[0, :, : context_tokens(window)] = kept

    def _file(self, window: Ids) -> Path:
        return self.folder / f"{hashlib.sha256(window.tobytes()).hexdigest()}.npy"


@dataclass(frozen=True)
class KeepingScorer:
    """A `Scorer` that runs a session, and keeps what that has read of every context."""

    session: Decoder
    contexts: KeptContexts

    def score(self, window: Ids) -> Iterator[tuple[Floats, Ids]]:
        """See `Scorer`. Raises UsageError: the window is longer than the context; OSError: the disk is full."""
        cache = read_context(self.session, window)
        self.contexts.write(window, cache)
        return predictions(self.session, window, cache)


@dataclass(frozen=True)
class ContinuingScorer:
    """A `Scorer` that runs a session on contexts that another form of the model has read."""

    session: Decoder
    contexts: KeptContexts

    def score(self, window: Ids) -> Iterator[tuple[Floats, Ids]]:
        """See `Scorer`. Raises OSError: nothing was kept of this window."""
        cache = empty_cache(self.session, window)
        self.contexts.read(window, cache)
        return predictions(self.session, window, cache)
