"""Logits to the next token: pure functions over arrays. Knows no request, no cache and no session.

The order of the filters is that of Hugging Face transformers, whose definitions these are:

    repetition penalty (Keskar et al. 2019, CTRL) → temperature → top-k → top-p (Holtzman et al. 2020) → min-p (Nguyen et al. 2024)

each over what the one before has left, renormalised. One uniform number a token chooses among the rest, in the order of
their ids, so that a request with a seed draws the same tokens alone and in a batch. Nothing sorts a whole vocabulary of
indices: borders are found by partition, or among the few values that can matter.
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

_BLOCK = 512
_COLDEST = 1e-6
"""Below this temperature float32 logits tell nothing more."""


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
    return draw(*filtered(row, setting), generator.random())


def penalise(row: Floats, seen: Ids, penalty: float) -> Floats:
    """A copy of `row` [vocabulary] where positive logits of the ids in `seen` are divided by `penalty` and others multiplied."""
    penalised = row.copy()
    scores = row[seen]
    penalised[seen] = np.where(scores < 0, scores * penalty, scores / penalty)
    return penalised


def filtered(row: Floats, setting: Sampling) -> tuple[Ids, Floats]:
    """The tokens that the filters leave, and weights in the proportions of their probabilities.

    Args:
        row: float32 [vocabulary], logits.
        setting: temperature above 0.

    Returns:
        ids int64 [kept], ascending, and weights float32 [kept].
    """
    ids = largest(row, setting.top_k) if setting.top_k else np.arange(len(row))
    weights = softmax(row[ids] if setting.top_k else row, setting.temperature)
    if setting.top_p < 1:
        kept = nucleus(weights, setting.top_p)
        ids, weights = ids[kept], weights[kept]
    if setting.min_p > 0:
        kept = np.flatnonzero(weights >= np.float32(setting.min_p) * weights.max())
        ids, weights = ids[kept], weights[kept]
    return ids, weights


def candidates(row: Floats, setting: Sampling) -> tuple[Ids, Doubles]:
    """The tokens that the filters leave and their probabilities, float64 [kept], which add up to one; see `filtered`."""
    ids, weights = filtered(row, setting)
    exact = weights.astype(np.float64)
    return ids, exact / exact.sum()


def softmax(row: Floats, temperature: float) -> Floats:
    """Probabilities of the logits `row` divided by `temperature`, float32 [vocabulary]."""
    with np.errstate(over="ignore"):  # a logit of -3e38 means "never" and may become minus infinity
        weights = np.exp((row - row.max()) / np.float32(max(temperature, _COLDEST)))
    probabilities: Floats = weights / weights.sum(dtype=np.float64).astype(np.float32)
    return probabilities


def largest(values: Floats, count: int) -> Ids:
    """Indices of the `count` largest of `values` (all, where there are fewer), ascending; of equal ones the lower index."""
    if count >= len(values):
        return np.arange(len(values))
    border = np.partition(values, len(values) - count)[len(values) - count]
    return _above(values, border, count)


def nucleus(probabilities: Floats, mass: float) -> Ids:
    """Indices, ascending, of the smallest set of most likely tokens whose probabilities reach `mass`; at least one."""
    # Tokens below (1 - mass) / n add up to less than 1 - mass, so that the others reach the mass without them.
    likely = probabilities[probabilities >= np.float32((1 - mass) / len(probabilities))]
    descending = np.sort(likely)[::-1]
    count = int(np.searchsorted(np.cumsum(descending.astype(np.float64)), mass)) + 1
    count = min(count, len(descending))
    return _above(probabilities, descending[count - 1], count)


def draw(ids: Ids, weights: Floats | Doubles, uniform: float) -> int:
    """The token at `uniform` (in [0, 1)) of the cumulated `weights`."""
    # In two levels, because a running sum over a whole vocabulary takes ten times as long as a sum.
    exact = weights.astype(np.float64)
    reached = np.cumsum(np.add.reduceat(exact, np.arange(0, len(exact), _BLOCK)))
    target = uniform * reached[-1]
    block = min(int(np.searchsorted(reached, target, side="right")), len(reached) - 1)
    inside = exact[block * _BLOCK : (block + 1) * _BLOCK]
    left = target - (reached[block - 1] if block else 0.0)
    # Rounding may carry the number past the block's end: it means the last token there that is possible at all.
    at = min(int(np.searchsorted(np.cumsum(inside), left, side="right")), int(np.flatnonzero(inside)[-1]))
    return int(ids[block * _BLOCK + at])


def _above(values: Floats, border: np.float32, count: int) -> Ids:
    """The `count` indices of values from `border` (the smallest of them) up, ascending; of those at the border the lower ones."""
    found = np.flatnonzero(values >= border)
    surplus = len(found) - count
    if surplus > 0:
        at_border = np.flatnonzero(values[found] == border)
        found = np.delete(found, at_border[-surplus:])
    return found
