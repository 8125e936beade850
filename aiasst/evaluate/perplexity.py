"""How well a decoder predicts a text, and how far it is from another one. Knows no format, no file and no tokenizer.

The text is cut into windows that do not overlap; the first half of a window is context, the second half is scored, so that
every scored token has at least half a window before it. Logits come in pieces, so that memory stays small with a large
vocabulary, and two models are compared piece by piece without a file of logits between them.

Perplexity is exp of the mean negative log-likelihood a token; the KL divergence is D(reference || other), in nats, of the
distributions of the next token; top-1 agreement is the share of tokens for which both find the same one most likely.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from aiasst.errors import UsageError
from aiasst.progress import Progress, ProgressFn, silent

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]

WINDOW = 512
PIECE = 64
"""Scored tokens whose logits are in memory at once."""


class Decoder(Protocol):
    """What measuring needs of a session; `runtime.session.DecoderSession` is the real one."""

    layers: int
    kv_heads: int
    head_dim: int
    context_length: int
    cache_dtype: np.dtype[Any]

    def step(
        self, ids: Ids, lengths: Sequence[int], cache_rows: Sequence[npt.NDArray[Any]], all_logits: bool = False
    ) -> Floats:
        """ids [rows, new] → logits [rows, vocabulary], or [rows, new, vocabulary] with `all_logits`."""


@dataclass(frozen=True)
class Perplexity:
    """Of one model on one text."""

    value: float
    nats_per_token: float
    tokens: int


@dataclass(frozen=True)
class Comparison:
    """Of a model with a reference, token by token on one text."""

    reference: Perplexity
    other: Perplexity
    mean_kl: float
    """Nats."""
    max_kl: float
    top1_agreement: float


def perplexity(
    session: Decoder, ids: Ids, *, window: int = WINDOW, windows: int | None = None, progress: ProgressFn = silent
) -> Perplexity:
    """Perplexity of `session` on `ids` int64 [tokens], over the first `windows` windows (None: all).

    Raises:
        UsageError: the text is shorter than one window, or a window is longer than the context.
    """
    losses: list[Doubles] = []
    for piece in _cut(ids, window, windows, session.context_length, progress):
        for logits, targets in scored(session, piece):
            losses.append(token_losses(logits, targets))
    return _perplexity(np.concatenate(losses))


def compare(
    reference: Decoder,
    other: Decoder,
    ids: Ids,
    *,
    window: int = WINDOW,
    windows: int | None = None,
    progress: ProgressFn = silent,
) -> Comparison:
    """Run both over the same windows of `ids`; see `perplexity`.

    Raises:
        UsageError: the text is shorter than one window, or a window is longer than a context.
    """
    reference_losses: list[Doubles] = []
    other_losses: list[Doubles] = []
    divergences: list[Doubles] = []
    agreements: list[npt.NDArray[np.bool_]] = []
    context = min(reference.context_length, other.context_length)
    for piece in _cut(ids, window, windows, context, progress):
        for (wanted, targets), (got, _) in zip(scored(reference, piece), scored(other, piece), strict=True):
            reference_losses.append(token_losses(wanted, targets))
            other_losses.append(token_losses(got, targets))
            divergences.append(kl_divergence(wanted, got))
            agreements.append(same_top1(wanted, got))
    kl = np.concatenate(divergences)
    return Comparison(
        reference=_perplexity(np.concatenate(reference_losses)),
        other=_perplexity(np.concatenate(other_losses)),
        mean_kl=float(kl.mean()),
        max_kl=float(kl.max()),
        top1_agreement=float(np.concatenate(agreements).mean()),
    )


def scored(session: Decoder, ids: Ids) -> Iterator[tuple[Floats, Ids]]:
    """(logits float32 [piece, vocabulary], the tokens that came next int64 [piece]) over the second half of one window."""
    shape = (1, session.kv_heads, len(ids), session.head_dim)
    cache = [np.empty(shape, session.cache_dtype) for _ in range(2 * session.layers)]
    begin = len(ids) // 2 - 1  # its logits predict the first token of the second half
    if begin > 0:
        session.step(ids[None, :begin], (begin,), cache)
    for start in range(begin, len(ids) - 1, PIECE):
        end = min(start + PIECE, len(ids) - 1)
        yield session.step(ids[None, start:end], (end,), cache, all_logits=True)[0], ids[start + 1 : end + 1]


def token_losses(logits: Floats, targets: Ids) -> Doubles:
    """Negative log-likelihood in nats, float64 [tokens], of `targets` [tokens] under `logits` [tokens, vocabulary]."""
    losses: Doubles = -log_softmax(logits)[np.arange(len(targets)), targets]
    return losses


def kl_divergence(reference: Floats, other: Floats) -> Doubles:
    """D(reference || other) in nats, float64 [tokens], of two arrays of logits [tokens, vocabulary]."""
    wanted, got = log_softmax(reference), log_softmax(other)
    divergence: Doubles = (np.exp(wanted) * (wanted - got)).sum(axis=-1)
    return divergence


def same_top1(reference: Floats, other: Floats) -> npt.NDArray[np.bool_]:
    """Whether both find the same token most likely, [tokens]; logits [tokens, vocabulary]."""
    same: npt.NDArray[np.bool_] = reference.argmax(axis=-1) == other.argmax(axis=-1)
    return same


def log_softmax(logits: Floats) -> Doubles:
    """Log-probabilities, float64, over the last axis."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    normalised: Doubles = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalised


def _cut(ids: Ids, window: int, windows: int | None, context: int, progress: ProgressFn) -> Iterator[Ids]:
    if not 2 <= window <= context:
        raise UsageError(
            f"a window of {window} tokens does not go into a context of {context}", "choose a smaller window"
        )
    if len(ids) < window:
        raise UsageError(f"the text has {len(ids)} tokens, one window needs {window}", "give a longer text")
    count = len(ids) // window if windows is None else min(windows, len(ids) // window)
    for index in range(count):
        progress(Progress("evaluate", index, count))
        yield ids[index * window : (index + 1) * window]
    progress(Progress("evaluate", count, count))


def _perplexity(losses: Doubles) -> Perplexity:
    mean = float(losses.mean())
    return Perplexity(math.exp(mean), mean, len(losses))
