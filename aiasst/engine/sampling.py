"""Logits to the next token: pure functions over arrays. Knows no request, no cache and no session.

The order of the filters is that of Hugging Face transformers, whose definitions these are:

    repetition penalty (Keskar et al. 2019, CTRL) → temperature → top-k → top-p (Holtzman et al. 2020) → min-p (Nguyen et al. 2024)

each over what the one before has left, renormalised. One uniform number a token chooses among the rest, most likely
first, so that a request with a seed draws the same tokens alone and in a batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from aiasst.engine.requests import Sampling
from aiasst.errors import ArtifactError

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]

_NUCLEUS_GUESSES = (64, 1024)
"""Sizes of the nucleus that are tried before the whole vocabulary is sorted."""


def sample(
    logits: Floats,
    settings: Sequence[Sampling],
    seen: Sequence[Ids],
    generators: Sequence[np.random.Generator],
) -> Ids:
    """The next token of every row.

    Args:
        logits: float32 [rows, vocabulary]; not changed.
        settings: one a row.
        seen: ids of prompt and answer so far, one array a row (for the repetition penalty).
        generators: one a row; a row that is not greedy draws one number from its own.

    Returns:
        int64 [rows].

    Raises:
        ArtifactError: a row has no largest number (NaN): the model is damaged.
    """
    best: Ids = logits.argmax(axis=1)
    if np.isnan(logits[np.arange(len(best)), best]).any():
        raise ArtifactError("the model computed NaN instead of logits", "convert the checkpoint again")
    for row, setting in enumerate(settings):
        if setting.temperature == 0 and setting.repetition_penalty == 1:
            continue
        best[row] = _sample_row(logits[row], setting, seen[row], generators[row])
    return best


def _sample_row(row: Floats, setting: Sampling, seen: Ids, generator: np.random.Generator) -> int:
    if setting.repetition_penalty != 1:
        row = penalise(row, seen, setting.repetition_penalty)
    if setting.temperature == 0:
        return int(row.argmax())
    return draw(*candidates(row, setting), generator.random())


def penalise(row: Floats, seen: Ids, penalty: float) -> Floats:
    """A copy of `row` [vocabulary] where positive logits of the ids in `seen` are divided by `penalty` and others multiplied."""
    penalised = row.copy()
    scores = row[seen]
    penalised[seen] = np.where(scores < 0, scores * penalty, scores / penalty)
    return penalised


def candidates(row: Floats, setting: Sampling) -> tuple[Ids, Doubles]:
    """The tokens that the filters leave and their probabilities, which add up to one.

    Args:
        row: float32 [vocabulary], logits.
        setting: temperature above 0.

    Returns:
        ids int64 [kept] and probabilities float64 [kept], most likely first where a filter needed that order, else by id.
    """
    ids: Ids | None = None
    if 0 < setting.top_k < len(row):
        ids = largest(row, setting.top_k)
        row = row[ids]
    weights = softmax(row, setting.temperature)
    if setting.top_p < 1:
        kept = nucleus(weights, setting.top_p)
        ids, weights = (kept if ids is None else ids[kept]), weights[kept]
    if setting.min_p > 0:
        kept = np.flatnonzero(weights >= setting.min_p * weights.max())
        ids, weights = (kept if ids is None else ids[kept]), weights[kept]
    if ids is None:
        ids = np.arange(len(row))
    return ids, weights / weights.sum()


def softmax(row: Floats, temperature: float) -> Doubles:
    """Probabilities of the logits `row` divided by `temperature`, float64 [vocabulary]."""
    # Subtracting the maximum first keeps a tiny temperature from overflowing.
    weights = np.exp((row - row.max()).astype(np.float64) / temperature)
    probabilities: Doubles = weights / weights.sum()
    return probabilities


def largest(values: npt.NDArray[np.floating], count: int) -> Ids:
    """Indices of the `count` largest of `values`, largest first, of equal ones the lower index first."""
    order: Ids
    if count < len(values):
        # Partition by value, not by index, so that ties at the border are resolved the same way everywhere.
        border = np.partition(values, len(values) - count)[len(values) - count]
        above = np.flatnonzero(values > border)
        order = np.concatenate([above, np.flatnonzero(values == border)[: count - len(above)]])
    else:
        order = np.arange(len(values))
    ranked: Ids = order[np.argsort(-values[order], kind="stable")]
    return ranked


def nucleus(probabilities: Doubles, mass: float) -> Ids:
    """Indices of the smallest set of most likely tokens whose probabilities reach `mass`, most likely first; at least one."""
    for guess in (*_NUCLEUS_GUESSES, len(probabilities)):
        ids = largest(probabilities, min(guess, len(probabilities)))
        reached = np.cumsum(probabilities[ids])
        if reached[-1] >= mass or len(ids) == len(probabilities):
            break
    return ids[: int(np.searchsorted(reached, mass)) + 1]


def draw(ids: Ids, probabilities: Doubles, uniform: float) -> int:
    """The token at `uniform` (in [0, 1)) of the cumulated `probabilities`."""
    cumulated = np.cumsum(probabilities)
    return int(ids[min(int(np.searchsorted(cumulated, uniform * cumulated[-1], side="right")), len(ids) - 1)])
