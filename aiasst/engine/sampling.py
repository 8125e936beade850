"""Logits to the next token: pure functions over arrays. Knows no request, no cache and no session.

What changes logits comes first, what leaves tokens out after it:

    repetition penalty (Keskar et al. 2019, CTRL) → frequency and presence penalty, logit bias (OpenAI's definitions)
    → bans and the grammar → temperature → top-k → top-p (Holtzman et al. 2020) → min-p (Nguyen et al. 2024)

The filters are those of Hugging Face transformers, in its order, each over what the one before has left, renormalised. A
uniform number of the row's own generator chooses among the rest, in the order of their ids, so that a request with a seed draws
the same tokens alone and in a batch. Nothing sorts or partitions a whole vocabulary: top-k and min-p leave out by a bound that
one pass gives what cannot be in; top-p draws first and asks then whether the token is in (`draw_within`). Row by row, because
a row fits into the cache of a core and a batch of rows does not. Rows that want none of it cost one argmax over the batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
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
_COLUMNS = 2048
"""Parts of a row, of which each gives its largest value: as many of them as are wanted are a lower bound for the row's."""
_FEW = 16
"""Where a grammar allows less than one of so many tokens, they are picked out."""
_GLANCE = 4
"""One of so many weights is looked at before all are."""
_NEVER = np.float32(-np.inf)
_NEVER_BITS = _NEVER.view(np.int32)
_LOWEST = np.finfo(np.float32).min
_COLDEST = 1e-6
"""Below this temperature float32 logits tell nothing more."""


class Row(Protocol):
    """What the choice of a row's next token depends on, besides its logits."""

    sampling: Sampling
    prompt_length: int
    generator: np.random.Generator
    """A row that is not greedy draws a number a token from it; with top-p another one for each that fell on what is outside."""
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
    ids, allowed = None, None if row.guide is None else row.guide.allowed
    banned = [token for token, bias in setting.logit_bias.items() if bias <= BAN]
    if allowed is not None and _FEW * np.count_nonzero(allowed) < len(allowed):
        # Where a grammar leaves little, as between the values of a JSON object, nothing else is worth a look.
        ids, allowed = np.flatnonzero(allowed), None
        scores, banned = scores.take(ids), np.flatnonzero(np.isin(ids, banned)).tolist()
    if banned or row.guide is not None:
        scores = restricted(scores, allowed, banned)
    index = int(scores.argmax()) if setting.temperature == 0 else drawn(scores, setting, row.generator)
    return index if ids is None else int(ids[index])


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
    closed = row.copy() if allowed is None else _closed(row, allowed)
    closed[list(banned)] = _NEVER
    if np.isfinite(closed.max()):
        return closed
    # All of it is banned, or model and penalties have gone to infinity: what is allowed must stay above what is not.
    left = np.ones(len(row), bool) if allowed is None else allowed.copy()
    left[list(banned)] = False
    if not left.any():
        left[:] = True if allowed is None else allowed
    return np.where(left, np.clip(row, _LOWEST, -_LOWEST), _NEVER)


def _closed(row: Floats, allowed: Bools) -> Floats:
    """A copy of `row` with minus infinity for what is not allowed; without a branch a token, of which a mixed mask is full."""
    penalty = allowed.view(np.int8).astype(np.int32)
    penalty -= 1
    penalty &= _NEVER_BITS  # the bits of 0.0 or of minus infinity
    with np.errstate(invalid="ignore"):  # what was infinite becomes NaN, which the caller looks for
        closed: Floats = row + penalty.view(np.float32)
    return closed


def drawn(row: Floats, setting: Sampling, generator: np.random.Generator) -> int:
    """A token, at random among those that the filters leave.

    Args:
        row: float32 [vocabulary], logits, none of them NaN.
        setting: temperature above 0.
        generator: gives a number, and with top-p another one for each that fell on a token outside.
    """
    ids = _left(row, setting)
    weights = proportions(row if ids is None else row.take(ids), setting.temperature)
    index = draw_within(weights, setting.top_p, generator, setting.min_p)
    return index if ids is None else int(ids[index])


def _left(row: Floats, setting: Sampling) -> Ids | None:
    """Ids, ascending, that top-k leaves, or, where it is the only filter, all that min-p may; None: all."""
    if 0 < setting.top_k < len(row):
        return largest(row, setting.top_k)
    if setting.top_p == 1 and setting.min_p > 0:
        return _near(row, setting)
    return None


def proportions(row: Floats, temperature: float) -> Floats:
    """Probabilities of the logits `row` divided by `temperature`, as multiples of the largest, float32 [vocabulary]."""
    highest = row.max()
    if np.isinf(highest):
        tops: Floats = (row == highest).astype(np.float32)
        return tops
    with np.errstate(over="ignore"):  # a logit of -3e38 means "never" and may become minus infinity
        weights: Floats = row - highest
        weights /= np.float32(max(temperature, _COLDEST))
    np.exp(weights, out=weights)
    return weights


def _near(row: Floats, setting: Sampling) -> Ids:
    """Ids, ascending, of all tokens that min-p may keep where it is the only filter, and of hardly any other."""
    highest, temperature = float(row.max()), max(setting.temperature, _COLDEST)
    # A little further than the border, because the border itself is that of rounded probabilities.
    below = temperature * (math.log(1 / setting.min_p) + 1e-3) + 1e-6 * abs(highest)
    return np.flatnonzero(row >= np.float32(highest - below))


def largest(values: Floats, count: int) -> Ids:
    """Indices of the `count` largest of `values` (all, where there are fewer), ascending; of equal ones the lower index."""
    if count >= len(values):
        return _all(len(values))
    length = len(values) // _COLUMNS
    if length < 2 or count > _COLUMNS // 4:
        return _above(values, np.partition(values, len(values) - count)[len(values) - count], count)
    tallest = values[: length * _COLUMNS].reshape(length, _COLUMNS).max(axis=0)
    bound = np.partition(tallest, _COLUMNS - count)[_COLUMNS - count]
    found = np.flatnonzero(values >= bound)
    few = values[found]
    kept: Ids = found[_above(few, np.partition(few, len(few) - count)[len(few) - count], count)]
    return kept


def draw_within(weights: Floats, mass: float, generator: np.random.Generator, least: float = 0.0) -> int:
    """An index, at random by the `weights`, of the nucleus: the smallest set of the heaviest whose weights make up `mass` of all.

    Nobody looks for the border of the nucleus. A draw from all of them is inside unless those that go before it, the heavier ones
    and of equal ones the earlier, reach the mass without it; if they do, another is drawn from those alone, which hold the nucleus
    still. That is rejection sampling (von Neumann 1951): what is kept is drawn in the proportions of the weights, after
    1 / mass draws on average at most.

    Args:
        weights: float32 [tokens], not negative, the largest is 1.
        mass: above 0; 1 keeps all.
        generator: gives a number for each draw.
        least: lighter ones are left out besides; they count as part of all.
    """
    sums = block_sums(weights)
    total = float(sums.sum())
    wanted = mass * total
    if least > 0:
        weights = weights * (weights >= np.float32(least))
        sums = block_sums(weights)
    while True:
        index = index_at(weights, sums, generator.random())
        if mass == 1 or _behind(weights, index) > total - wanted:
            return index
        before = _before(weights, index)
        sums = block_sums(before)
        if sums.sum() < wanted:
            return index
        weights = before


def _before(weights: Floats, index: int) -> Floats:
    """The weights that are heavier than the one at `index`, or as heavy and earlier; 0 for the others."""
    weight = weights[index]
    before: Floats = weights * (weights > weight)
    before[np.flatnonzero(weights[:index] == weight)] = weight
    return before


def _behind(weights: Floats, index: int) -> float:
    """A part of what the weight at `index` and those that go after it make up, from a look at some: often it is enough."""
    weight = weights[index]
    some = weights[: len(weights) // _GLANCE]
    return float(weight) + float((some * (some < weight)).sum())


def block_sums(weights: Floats) -> Doubles:
    """What each _BLOCK of `weights` adds up to: a running sum over a whole vocabulary takes ten times as long."""
    return np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK)).astype(np.float64)


def index_at(weights: Floats, sums: Doubles, uniform: float) -> int:
    """Where the cumulated `weights` (float32, some above 0) reach `uniform` (in [0, 1)) of all; `sums` are their `block_sums`."""
    reached = np.cumsum(sums)
    target = uniform * reached[-1]
    # Rounding may carry the number to the very end: it means the last block in which something is possible.
    last = int(np.searchsorted(reached, reached[-1]))
    block = min(int(np.searchsorted(reached, target, side="right")), last)
    inside = weights[block * _BLOCK : (block + 1) * _BLOCK].astype(np.float64)
    left = target - (reached[block - 1] if block else 0.0)
    # And likewise past a block's end.
    at = min(int(np.searchsorted(np.cumsum(inside), left, side="right")), int(np.flatnonzero(inside)[-1]))
    return block * _BLOCK + at


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


@lru_cache(maxsize=8)
def _all(count: int) -> Ids:
    """The indices 0 … `count` - 1; read-only, since everyone gets the same."""
    indices = np.arange(count)
    indices.flags.writeable = False
    return indices


def _above(values: Floats, border: np.float32, count: int) -> Ids:
    """The `count` indices of values from `border` (the smallest of them) up, ascending; of those at the border the lower ones."""
    found = np.flatnonzero(values >= border)
    surplus = len(found) - count
    if surplus > 0:
        at_border = np.flatnonzero(values[found] == border)
        found = np.delete(found, at_border[-surplus:])
    return found
