"""Logits to the next token: pure functions over arrays. Knows no request, no cache and no session.

What changes logits comes first, what leaves tokens out after it:

    repetition penalty (Keskar et al. 2019, CTRL) → frequency and presence penalty, logit bias (OpenAI's definitions)
    → bans and the grammar → temperature → top-k → top-p (Holtzman et al. 2020) → min-p (Nguyen et al. 2024)

The filters are those of Hugging Face transformers, in its order, each over what the one before has left, renormalised. One
uniform number a token chooses among the rest, in the order of their ids, so that a request with a seed draws the same
tokens alone and in a batch. Nothing sorts a whole vocabulary of indices: borders are found by partition, or among the few
values that can matter. Rows that want none of it cost one argmax over the batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from aiasst.engine.requests import Guide, Sampling, TokenChances
from aiasst.errors import ArtifactError

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

BAN = -100.0
"""This logit bias forbids a token; less of one only makes it unlikely."""
LEAST_CHANCE = -9999.0
"""Stands for the log probability of what is impossible: JSON knows no infinity. OpenAI's number."""

_BLOCK = 512
_NEVER = np.float32(-np.inf)
_LOWEST = np.finfo(np.float32).min
_COLDEST = 1e-6
"""Below this temperature float32 logits tell nothing more."""


class Row(Protocol):
    """What the choice of a row's next token depends on, besides its logits."""

    sampling: Sampling
    prompt_length: int
    generator: np.random.Generator
    """A row that is not greedy draws one number a token from it."""
    guide: Guide | None

    @property
    def tokens(self) -> Ids:
        """Of prompt and answer so far."""


def sample(logits: Floats, rows: Sequence[Row]) -> Ids:
    """The next token of every row.

    Args:
        logits: float32 [rows, vocabulary]; not changed.
        rows: one for each row of `logits`.

    Returns:
        int64 [rows].

    Raises:
        ArtifactError: a row has no largest number (NaN): the model is damaged.
    """
    best: Ids = logits.argmax(axis=1)
    if np.isnan(logits[np.arange(len(best)), best]).any():
        raise ArtifactError("the model computed NaN instead of logits", "convert the checkpoint again")
    for index, row in enumerate(rows):
        if row.sampling.temperature > 0 or row.guide is not None or _adjusts(row.sampling):
            best[index] = _choose(logits[index], row)
    return best


def _adjusts(setting: Sampling) -> bool:
    return bool(
        setting.repetition_penalty != 1 or setting.frequency_penalty or setting.presence_penalty or setting.logit_bias
    )


def _choose(scores: Floats, row: Row) -> int:
    setting = row.sampling
    if setting.repetition_penalty != 1:
        scores = penalise(scores, row.tokens, setting.repetition_penalty)
    if setting.frequency_penalty or setting.presence_penalty:
        answer = row.tokens[row.prompt_length :]
        scores = discourage(scores, answer, setting.frequency_penalty, setting.presence_penalty)
    if setting.logit_bias:
        scores = biased(scores, setting.logit_bias)
    banned = [token for token, bias in setting.logit_bias.items() if bias <= BAN]
    if banned or row.guide is not None:
        scores = restricted(scores, None if row.guide is None else row.guide.allowed, banned)
    if setting.temperature == 0:
        return int(scores.argmax())
    return draw(*filtered(scores, setting), row.generator.random())


def penalise(row: Floats, seen: Ids, penalty: float) -> Floats:
    """A copy of `row` [vocabulary] where positive logits of the ids in `seen` are divided by `penalty` and others multiplied."""
    penalised = row.copy()
    scores = row[seen]
    penalised[seen] = np.where(scores < 0, scores * penalty, scores / penalty)
    return penalised


def discourage(row: Floats, answer: Ids, frequency: float, presence: float) -> Floats:
    """A copy of `row` [vocabulary] where each id in `answer` loses `presence`, and `frequency` for every time it is there."""
    lowered = row.copy()
    ids, counts = np.unique(answer, return_counts=True)
    lowered[ids] -= (counts * frequency + presence).astype(np.float32)
    return lowered


def biased(row: Floats, bias: Mapping[int, float]) -> Floats:
    """A copy of `row` [vocabulary] with `bias` (id → what is added)."""
    moved = row.copy()
    moved[list(bias)] += np.array(list(bias.values()), np.float32)
    return moved


def restricted(row: Floats, allowed: Bools | None, banned: Sequence[int]) -> Floats:
    """A copy of `row` [vocabulary] where only tokens that are `allowed` (None: all) and not `banned` are possible.

    Where nothing is left, the bans fall: a grammar that goes on with banned tokens only goes on with them.
    """
    closed: Floats = row.copy() if allowed is None else np.where(allowed, row, _NEVER)
    closed[list(banned)] = _NEVER
    if np.isfinite(closed.max()):
        return closed
    # All of it is banned, or model and penalties have gone to infinity: what is allowed must stay above what is not.
    left = np.ones(len(row), bool) if allowed is None else allowed.copy()
    left[list(banned)] = False
    if not left.any():
        left[:] = True if allowed is None else allowed
    np.copyto(closed, np.clip(row, _LOWEST, -_LOWEST), where=left)
    return closed


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
    # Rounding may carry the number to the very end: it means the last block in which something is possible.
    last = int(np.searchsorted(reached, reached[-1]))
    block = min(int(np.searchsorted(reached, target, side="right")), last)
    inside = exact[block * _BLOCK : (block + 1) * _BLOCK]
    left = target - (reached[block - 1] if block else 0.0)
    # And likewise past a block's end.
    at = min(int(np.searchsorted(np.cumsum(inside), left, side="right")), int(np.flatnonzero(inside)[-1]))
    return int(ids[block * _BLOCK + at])


def chances(row: Floats, token: int, count: int) -> TokenChances:
    """Log probabilities, in nats, of `token` and of the `count` likeliest tokens by the logits `row` [vocabulary]."""
    top = float(row.max())
    with np.errstate(over="ignore"):
        total = float(np.exp(row - np.float32(top)).sum(dtype=np.float64))

    def chance(index: int) -> float:
        return max(float(row[index]) - top - math.log(total), LEAST_CHANCE)

    likeliest = largest(row, count) if count else np.empty(0, np.int64)
    falling = likeliest[np.argsort(-row[likeliest], kind="stable")]
    return TokenChances(chance(token), tuple((index, chance(index)) for index in falling.tolist()))


def _above(values: Floats, border: np.float32, count: int) -> Ids:
    """The `count` indices of values from `border` (the smallest of them) up, ascending; of those at the border the lower ones."""
    found = np.flatnonzero(values >= border)
    surplus = len(found) - count
    if surplus > 0:
        at_border = np.flatnonzero(values[found] == border)
        found = np.delete(found, at_border[-surplus:])
    return found
