"""How well a decoder predicts a text, and how far it is from another one. Knows no format, no file and no tokenizer.

The text is cut into windows that do not overlap; the first half of a window is context, the second half is scored, so that
every scored token has at least half a window before it. Logits come in pieces, so that memory stays small with a large
vocabulary, and two models are compared piece by piece without a file of logits between them.

Perplexity is exp of the mean negative log-likelihood a token; the KL divergence is D(reference || other), in nats, of the
distributions of the next token; top-1 agreement is the share of tokens for which both find the same one most likely; the
next-token accuracy is the share of tokens that a model itself found most likely before it saw them.
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
_ELEMENTS = 1 << 21
"""Logits that are worked on in float64 at once (16 MB an array)."""


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


class Scorer(Protocol):
    """Whatever predicts the second half of a window: a session, or a model that is never in memory as a whole."""

    def score(self, window: Ids) -> Iterator[tuple[Floats, Ids]]:
        """Logits and what came next, over the second half of a window of int64 [T].

        Yields, for pieces of `PIECE` tokens (the last may be shorter) that cover targets T // 2 … T - 1 in order:
            logits float32 [piece, vocabulary], and the tokens that came next, int64 [piece].

        Raises:
            UsageError: the window is longer than the context.
        """


@dataclass(frozen=True)
class DecoderScorer:
    """A scorer that runs a session."""

    session: Decoder

    def score(self, window: Ids) -> Iterator[tuple[Floats, Ids]]:
        """See `Scorer`. Raises UsageError: the window is longer than the context."""
        return predictions(self.session, window, read_context(self.session, window))


def context_tokens(window: Ids) -> int:
    """Tokens of a window that are read before the first logits: those of the next one predict the second half's first token."""
    return len(window) // 2 - 1


def empty_cache(session: Decoder, window: Ids) -> list[npt.NDArray[Any]]:
    """Arrays [1, kv_heads, T, head_dim] for a window of int64 [T], in the order of `signature.cache_pairs`.

    Raises:
        UsageError: the window is longer than the context.
    """
    if len(window) > session.context_length:
        raise UsageError(
            f"a window of {len(window)} tokens does not go into a context of {session.context_length}",
            "choose a smaller window",
        )
    shape = (1, session.kv_heads, len(window), session.head_dim)
    return [np.empty(shape, session.cache_dtype) for _ in range(2 * session.layers)]


def read_context(session: Decoder, window: Ids) -> list[npt.NDArray[Any]]:
    """A cache as `empty_cache` gives it, with the first `context_tokens` of the window read. Raises UsageError."""
    cache, count = empty_cache(session, window), context_tokens(window)
    if count > 0:
        session.step(window[None, :count], (count,), cache)
    return cache


def predictions(session: Decoder, window: Ids, cache: Sequence[npt.NDArray[Any]]) -> Iterator[tuple[Floats, Ids]]:
    """Logits and what came next over the second half of a window whose context is in `cache`; see `Scorer`."""
    for start in range(context_tokens(window), len(window) - 1, PIECE):
        end = min(start + PIECE, len(window) - 1)
        logits = session.step(window[None, start:end], (end,), cache, all_logits=True)[0]
        yield logits, window[start + 1 : end + 1]


@dataclass(frozen=True)
class Perplexity:
    """Of one model on one text."""

    value: float
    nats_per_token: float
    accuracy: float
    """Share of the scored tokens that the model found most likely."""
    tokens: int
    """Scored: half of those that were read."""


@dataclass(frozen=True)
class Comparison:
    """Of a model with a reference, token by token on one text."""

    reference: Perplexity
    other: Perplexity
    mean_kl: float
    """Nats."""
    kl_p999: float
    """99.9th percentile over the scored tokens, in nats: what the model does to its worst tokens."""
    max_kl: float
    top1_agreement: float

    @property
    def tokens(self) -> int:
        """Scored tokens."""
        return self.reference.tokens

    @property
    def retained_percent(self) -> float | None:
        """Next-token accuracy as a percentage of the reference's; None where the reference is never right."""
        return 100 * self.other.accuracy / self.reference.accuracy if self.reference.accuracy else None


def perplexity(
    scorer: Scorer, ids: Ids, *, window: int = WINDOW, windows: int | None = None, progress: ProgressFn = silent
) -> Perplexity:
    """Perplexity of a model on `ids` int64 [tokens], over the first `windows` windows (None: all).

    Raises:
        UsageError: the text is shorter than one window, or a window is longer than the context.
    """
    tally = _Tally()
    for piece in _cut(ids, window, windows, progress):
        for logits, targets in scorer.score(piece):
            for rows in _slices(logits):
                tally.add(log_softmax(logits[rows]), targets[rows])
    return tally.perplexity()


def compare(
    reference: Scorer,
    other: Scorer,
    ids: Ids,
    *,
    window: int = WINDOW,
    windows: int | None = None,
    progress: ProgressFn = silent,
) -> Comparison:
    """Run both over the same windows of `ids`; see `perplexity`.

    Raises:
        UsageError: the text is shorter than one window, or a window is longer than a context, or their vocabularies differ.
    """
    return compare_all(reference, [other], ids, window=window, windows=windows, progress=progress)[0]


def compare_all(
    reference: Scorer,
    others: Sequence[Scorer],
    ids: Ids,
    *,
    window: int = WINDOW,
    windows: int | None = None,
    progress: ProgressFn = silent,
) -> list[Comparison]:
    """Each of `others` beside the reference, which answers once for all of them; see `compare`."""
    tallies = [_Beside() for _ in others]
    for piece in _cut(ids, window, windows, progress):
        for (wanted, targets), *answers in zip(
            reference.score(piece), *(other.score(piece) for other in others), strict=True
        ):
            for tally, (got, _) in zip(tallies, answers, strict=True):
                tally.add(wanted, got, targets)
    return [tally.comparison() for tally in tallies]


def token_losses(logits: Floats, targets: Ids) -> Doubles:
    """Negative log-likelihood in nats, float64 [tokens], of `targets` [tokens] under `logits` [tokens, vocabulary]."""
    return _losses(log_softmax(logits), targets)


def kl_divergence(reference: Floats, other: Floats) -> Doubles:
    """D(reference || other) in nats, float64 [tokens], of two arrays of logits [tokens, vocabulary]."""
    return _divergence(log_softmax(reference), log_softmax(other))


def same_top1(reference: Floats, other: Floats) -> npt.NDArray[np.bool_]:
    """Whether both find the same token most likely, [tokens]; logits [tokens, vocabulary]."""
    same: npt.NDArray[np.bool_] = reference.argmax(axis=-1) == other.argmax(axis=-1)
    return same


def log_softmax(logits: Floats) -> Doubles:
    """Log-probabilities, float64, over the last axis."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    normalised: Doubles = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalised


class _Tally:
    """Collects what one model made of each scored token."""

    def __init__(self) -> None:
        self._losses: list[Doubles] = []
        self._hits = 0

    def add(self, log_probabilities: Doubles, targets: Ids) -> None:
        self._losses.append(_losses(log_probabilities, targets))
        self._hits += int((log_probabilities.argmax(axis=-1) == targets).sum())

    def perplexity(self) -> Perplexity:
        losses = np.concatenate(self._losses)
        mean = float(losses.mean())
        # exp overflows beyond 709 nats; no model that answers at all comes near.
        return Perplexity(math.exp(min(mean, 700.0)), mean, self._hits / len(losses), len(losses))


class _Beside:
    """Collects what two models made of each scored token."""

    def __init__(self) -> None:
        self._before, self._after = _Tally(), _Tally()
        self._divergences: list[Doubles] = []
        self._agreements: list[npt.NDArray[np.bool_]] = []

    def add(self, wanted: Floats, got: Floats, targets: Ids) -> None:
        _refuse_other_vocabulary(wanted, got)
        for rows in _slices(wanted):
            wanted_log, got_log = log_softmax(wanted[rows]), log_softmax(got[rows])
            self._before.add(wanted_log, targets[rows])
            self._after.add(got_log, targets[rows])
            self._divergences.append(_divergence(wanted_log, got_log))
            self._agreements.append(same_top1(wanted[rows], got[rows]))

    def comparison(self) -> Comparison:
        kl = np.concatenate(self._divergences)
        return Comparison(
            reference=self._before.perplexity(),
            other=self._after.perplexity(),
            mean_kl=float(kl.mean()),
            kl_p999=float(np.quantile(kl, 0.999)),
            max_kl=float(kl.max()),
            top1_agreement=float(np.concatenate(self._agreements).mean()),
        )


def _losses(log_probabilities: Doubles, targets: Ids) -> Doubles:
    losses: Doubles = -log_probabilities[np.arange(len(targets)), targets]
    return losses


def _divergence(wanted: Doubles, got: Doubles) -> Doubles:
    divergence: Doubles = (np.exp(wanted) * (wanted - got)).sum(axis=-1)
    return divergence


def _slices(logits: Floats) -> Iterator[slice]:
    """Rows of `logits` [rows, vocabulary], as many at a time as keep the arithmetic small."""
    step = max(1, _ELEMENTS // logits.shape[1])
    for start in range(0, len(logits), step):
        yield slice(start, start + step)


def _refuse_other_vocabulary(wanted: Floats, got: Floats) -> None:
    if wanted.shape != got.shape:
        raise UsageError(
            f"the models have vocabularies of {wanted.shape[1]} and {got.shape[1]} tokens, so they cannot be compared",
            "compare a model with the one that it was made from",
        )


def _cut(ids: Ids, window: int, windows: int | None, progress: ProgressFn) -> Iterator[Ids]:
    if window < 2:
        raise UsageError(f"a window of {window} tokens has nothing to score", "choose a window of 2 tokens or more")
    if len(ids) < window:
        raise UsageError(f"the text has {len(ids)} tokens, one window needs {window}", "give a longer text")
    count = len(ids) // window if windows is None else min(windows, len(ids) // window)
    for index in range(count):
        progress(Progress("evaluate", index, count))
        yield ids[index * window : (index + 1) * window]
    progress(Progress("evaluate", count, count))
