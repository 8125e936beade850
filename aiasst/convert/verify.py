"""Compares a converted model with the original on text: the same numbers, or an error. Knows no exporter and no pass.

A decoder is run the way it will be used: one prompt, a further piece of it on top of the cache, then token by token;
the original sees the whole text at once. Every position must agree, so a wrong window, position, cache or norm shows.
An encoder gets a batch of rows of unequal length, each in two halves like a pair of texts, so wrong padding and types show.

The measure is the largest absolute difference. Its limit is `tolerance` x the largest absolute value of the original,
since rounding grows with the numbers: float32 in another order of summation stays near 1e-6 of it (1e-5 in deep
models), a real mistake is above 1e-2. The default lies between the two.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from aiasst.artifacts import signature
from aiasst.artifacts.model_folder import Shape, Verification
from aiasst.convert import reference
from aiasst.convert.architecture import Architecture
from aiasst.errors import ArtifactError, VerificationError
from aiasst.progress import Progress, ProgressFn, silent
from aiasst.runtime.session import GraphSession
from aiasst.runtime.settings import SessionSettings
from aiasst.tokenizer import Tokenizer

if TYPE_CHECKING:
    from aiasst.convert.sources import Checkpoint

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

DEFAULT_TOLERANCE = 1e-4
TEXT_NAME = "verify_text.txt"
SHORTEST, LONGEST = 256, 1152
"""Tokens of the comparison: `SHORTEST`, or as many as reach beyond the widest sliding window, at most `LONGEST`."""
BEYOND_WINDOW = 64
ENCODER_ROW = 64
"""Tokens of the longest row of the comparison of an encoder; `FINE_DISTANCES` more where it attends by distance."""
FINE_DISTANCES = 128
"""From here on at the latest MPNet and DeBERTa-v3 put distances together."""
MOST_LOGITS = 48_000_000
"""Positions x vocabulary that are kept for comparison (192 MB); the last positions where it is less than all."""
_ONCE = SessionSettings(prepack=False)
"""The graph runs a few times: its weights stay memory-mapped, and a second copy of them is not made."""
SINGLE_STEPS = 4
"""Tokens at the end that are decoded one by one."""


@dataclass(frozen=True)
class Sample:
    """What both models are given."""

    ids: Ids
    """int64 [tokens]"""
    name: str
    """Where the ids come from, for the manifest."""


def decoder(
    checkpoint: Checkpoint,
    graph: Path,
    shape: Shape,
    architecture: Architecture,
    tolerance: float = DEFAULT_TOLERANCE,
    progress: ProgressFn = silent,
) -> Verification:
    """Compare a causal decoder with the original, position by position.

    Raises:
        VerificationError: the largest difference is above the limit.
    """
    sample = sample_ids(checkpoint.path, shape.vocab_size, comparison_length(architecture))
    keep = min(len(sample.ids), max(1, MOST_LOGITS // shape.vocab_size))
    progress(Progress("verify", 0, 2, "original in torch"))
    expected = reference.decoder_logits(checkpoint, sample.ids, keep)
    progress(Progress("verify", 1, 2, "converted model"))
    with _must_run():
        found = cached_logits(GraphSession.open(graph, _ONCE), shape, sample.ids, keep)
    progress(Progress("verify", 2, 2, f"{len(sample.ids)} tokens"))
    agreement = float(np.mean(expected.argmax(-1) == found.argmax(-1)))
    return _judge(sample, len(sample.ids), expected, found, agreement, tolerance)


def encoder(
    checkpoint: Checkpoint,
    graph: Path,
    task: str,
    architecture: Architecture,
    tolerance: float = DEFAULT_TOLERANCE,
    progress: ProgressFn = silent,
) -> Verification:
    """Compare an encoder with the original on a padded batch, the padding itself left out.

    Raises:
        VerificationError: the largest difference is above the limit.
    """
    longest = encoder_length(architecture)
    sample = sample_ids(checkpoint.path, architecture.vocab_size, 4 * longest)
    ids, mask = ragged_batch(sample.ids, longest, architecture.tokens.pad or 0)
    with _must_run():
        session = GraphSession.open(graph, _ONCE)
    types = None
    if signature.TOKEN_TYPE_IDS in session.input_names and checkpoint.config.get("type_vocab_size", 2) > 1:
        types = second_halves(mask)
    progress(Progress("verify", 0, 2, "original in torch"))
    expected = reference.encoder_output(checkpoint, task, ids, mask, types)
    progress(Progress("verify", 1, 2, "converted model"))
    feeds = {
        signature.INPUT_IDS: ids,
        signature.ATTENTION_MASK: mask,
        signature.TOKEN_TYPE_IDS: np.zeros_like(ids) if types is None else types,
    }
    with _must_run():
        found = session.run({name: feeds[name] for name in session.input_names}, session.output_names[:1])[0]
    progress(Progress("verify", 2, 2, f"{int(mask.sum())} tokens"))
    if expected.ndim == 3:
        agreement = _neighbour_agreement(expected, found, mask)
        expected, found = expected[mask == 1], found[mask == 1]
    else:
        agreement = float(np.mean(expected.argmax(-1) == found.argmax(-1)))
    return _judge(sample, int(mask.sum()), expected, found, agreement, tolerance)


def comparison_length(architecture: Architecture) -> int:
    """How many tokens a decoder is compared on."""
    widest = max((window for window in architecture.layer_windows if window is not None), default=0)
    return min(architecture.context_length, LONGEST, max(SHORTEST, widest + BEYOND_WINDOW))


def encoder_length(architecture: Architecture) -> int:
    """How many tokens the longest row has that an encoder is compared on: more than local attention and fine distances reach."""
    reach = max((window for window in architecture.layer_windows if window is not None), default=0)
    reach = max(reach, FINE_DISTANCES if architecture.relative_positions else 0)
    return min(architecture.context_length, reach + ENCODER_ROW)


def sample_ids(folder: Path, vocab_size: int, count: int) -> Sample:
    """`count` ids: of the text that comes with the program, or random ones where the checkpoint has no tokenizer."""
    if (folder / "tokenizer.json").is_file():
        text = resources.files("aiasst.convert").joinpath(TEXT_NAME).read_text(encoding="utf-8")
        ids = [token for token in Tokenizer.load(folder).encode(text) if token < vocab_size]
        if ids:
            return Sample(np.resize(np.asarray(ids, np.int64), count), f"prose, dialogue and code ({TEXT_NAME})")
    random = np.random.default_rng(0).integers(0, vocab_size, count, dtype=np.int64)
    return Sample(random, "random ids (the checkpoint has no tokenizer.json)")


def ragged_batch(ids: Ids, longest: int, pad: int) -> tuple[Ids, Ids]:
    """Eight rows of unequal length cut from `ids`, right-padded with `pad`: (ids, mask), int64 [8, longest]."""
    lengths = [max(1, longest * share // 8) for share in (8, 3, 6, 1, 7, 4, 5, 2)]
    batch, mask = np.full((8, longest), pad, np.int64), np.zeros((8, longest), np.int64)
    start = 0
    for row, length in enumerate(lengths):
        batch[row, :length] = np.take(ids, np.arange(start, start + length), mode="wrap")
        mask[row, :length] = 1
        start += length
    return batch, mask


def second_halves(mask: Ids) -> Ids:
    """Token types as those of pairs of texts: 1 for the second half of each row's tokens, int64 shaped like `mask`."""
    types: Ids = mask * (2 * mask.cumsum(axis=1) > mask.sum(axis=1, keepdims=True))
    return types


def cached_logits(session: GraphSession, shape: Shape, ids: Ids, keep: int) -> Floats:
    """Logits of the last `keep` positions, computed on the cache: a prompt, a piece on top of it, single tokens.

    Args:
        session: The converted decoder.
        shape: Its numbers.
        ids: int64 [tokens].
        keep: How many positions, counted from the end.

    Returns:
        float32 [keep, vocabulary].
    """
    pairs = signature.cache_pairs(shape.layers)
    caches = [np.zeros((1, shape.kv_heads, 0, shape.head_dim), np.float32)] * len(pairs)
    outputs = [signature.LOGITS, *(present for _, present in pairs)]
    pieces: list[Floats] = []
    for start, stop in _steps(len(ids), keep):
        feeds: dict[str, npt.NDArray[np.generic]] = {
            name: cache for (name, _), cache in zip(pairs, caches, strict=True)
        }
        feeds[signature.INPUT_IDS] = ids[None, start:stop]
        feeds[signature.ATTENTION_MASK] = np.ones((1, stop), np.int64)
        # A single token is asked the usual way, so the default form of the logits is compared as well.
        if stop - start > 1 and stop > len(ids) - keep:
            feeds[signature.ALL_LOGITS] = np.array(True)
        logits, *caches = session.run(feeds, outputs)
        pieces.append(logits[0])
    found: Floats = np.concatenate(pieces)[-keep:]
    return found


@contextlib.contextmanager
def _must_run() -> Iterator[None]:
    """A graph of ours that does not run is a failed conversion, not a damaged file."""
    try:
        yield
    except ArtifactError as error:
        raise VerificationError(
            f"the converted model does not run: {error.message}", "try another --exporter"
        ) from error


def _steps(tokens: int, keep: int) -> list[tuple[int, int]]:
    """(start, stop) of the pieces: three quarters as the prompt, a second piece on its cache, the rest one by one."""
    single = min(SINGLE_STEPS, max(0, tokens - 2))
    first = max(1, (tokens - single) * 3 // 4)
    bounds = sorted({0, first, max(0, tokens - keep), *range(tokens - single, tokens + 1)})
    return list(itertools.pairwise(bounds))


def _neighbour_agreement(expected: Floats, found: Floats, mask: Ids) -> float:
    """Share of rows whose nearest other row (cosine of the mean vector) is the same in both."""

    def nearest(values: Floats) -> npt.NDArray[np.intp]:
        mean = (values * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)
        unit = mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)
        similar = unit @ unit.T
        np.fill_diagonal(similar, -np.inf)
        winners: npt.NDArray[np.intp] = similar.argmax(1)
        return winners

    return float(np.mean(nearest(expected) == nearest(found)))


def _judge(
    sample: Sample, tokens: int, expected: Floats, found: Floats, agreement: float, tolerance: float
) -> Verification:
    if expected.shape != found.shape:
        raise VerificationError(
            f"the converted model answers {found.shape}, the original {expected.shape}", "try another --exporter"
        )
    difference = float(np.abs(expected - found).max())
    limit = tolerance * float(np.abs(expected).max())
    # `not <=` so that a NaN fails too.
    if not difference <= limit:
        raise VerificationError(
            f"the converted model differs from the original by {difference:.3g} (allowed {limit:.3g}) on "
            f"{tokens} tokens, and names the same token at {agreement:.1%} of the positions; nothing was written",
            "try another --exporter; --tolerance allows more if you know why it differs",
        )
    return Verification(
        reference="transformers, float32, eager attention",
        text=sample.name,
        tokens=tokens,
        max_abs_diff=difference,
        top1_agreement=agreement,
        tolerance=limit,
    )
