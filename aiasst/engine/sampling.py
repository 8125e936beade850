"""Logits to the next token: pure functions over arrays. Knows no request, no cache and no session.

What changes logits comes first, what leaves tokens out after it:

    repetition penalty (Keskar et al. 2019, CTRL) → frequency and presence penalty, logit bias (OpenAI's definitions)
    → bans and the grammar → temperature → top-k → top-p (Holtzman et al. 2020) → min-p (Nguyen et al. 2024)

The filters are those of Hugging Face transformers, in its order, each over what the one before has left, renormalised. One
uniform number a token chooses among the rest, in the order of their ids, so that a request with a seed draws the same
tokens alone and in a batch. Nothing sorts or partitions a whole vocabulary: what cannot be in is left out by a bound that one
pass gives, and a border is looked for among the rest. Row by row, because a row fits into the cache of a core and a batch of
rows does not. Rows that want none of it cost one argmax over the batch.
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
_MANY = 4096
"""Values that are sorted as they are."""
_PROBES = 1024
"""Values that tell about where a border lies among more of them, and how far from it the answer may be, in probes."""
_ASTRAY = 48
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
    ids, chosen = _all(len(row)), row
    if setting.top_k:
        ids = largest(row, setting.top_k)
        chosen = row[ids]
    elif setting.top_p == 1 and setting.min_p > 0:
        ids = _near(row, setting)
        chosen = row[ids]
    if setting.top_p == 1 and setting.min_p == 0:  # a draw needs proportions only
        return ids, _proportions(chosen, setting.temperature)
    weights = softmax(chosen, setting.temperature)
    if setting.top_p < 1:
        kept = nucleus(weights, setting.top_p)
        ids, weights = ids.take(kept), weights.take(kept)
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
    weights = _proportions(row, temperature)
    weights /= weights.sum(dtype=np.float64).astype(np.float32)
    return weights


def _near(row: Floats, setting: Sampling) -> Ids:
    """Ids, ascending, of all tokens that min-p may keep where it is the only filter, and of hardly any other."""
    highest, temperature = float(row.max()), max(setting.temperature, _COLDEST)
    # A little further than the border, because the border itself is that of rounded probabilities.
    below = temperature * (math.log(1 / setting.min_p) + 1e-3) + 1e-6 * abs(highest)
    return np.flatnonzero(row >= np.float32(highest - below))


def _proportions(row: Floats, temperature: float) -> Floats:
    """Probabilities as multiples of the largest."""
    with np.errstate(over="ignore"):  # a logit of -3e38 means "never" and may become minus infinity
        weights: Floats = row - row.max()
        weights /= np.float32(max(temperature, _COLDEST))
    np.exp(weights, out=weights)
    return weights


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


def nucleus(probabilities: Floats, mass: float) -> Ids:
    """Indices, ascending, of the smallest set of most likely tokens whose probabilities reach `mass`; at least one."""
    # Tokens below (1 - mass) / n add up to less than 1 - mass, so that the others reach the mass without them.
    enough = probabilities >= np.float32((1 - mass) / len(probabilities))
    # Where most are likely enough, to copy them costs more than to look at all.
    likely = probabilities if 2 * np.count_nonzero(enough) > len(enough) else probabilities.compress(enough)
    sure, missing = 0, mass
    while len(likely) > _MANY:
        # What lies above the border for certain is counted, what lies below is left: a few hundred are looked at more closely.
        low, high = _around(likely, missing)
        above = likely > high
        reached, larger = float((likely * above).sum(dtype=np.float64)), int(np.count_nonzero(above))
        between = likely.compress((likely >= low) ^ above)
        held = float(between.sum(dtype=np.float64))
        before = len(likely)
        if reached >= missing:
            likely = likely.compress(above)
        elif reached + held >= missing or larger + len(between) == before:
            sure, missing, likely = sure + larger, missing - reached, between
        else:
            sure, missing = sure + larger + len(between), missing - reached - held
            likely = likely.compress(likely < low)
        if 8 * len(likely) > 7 * before:  # many equal ones: nothing tells them apart
            break
    descending = np.sort(likely)[::-1]
    count = min(int(np.searchsorted(np.cumsum(descending.astype(np.float64)), missing)) + 1, len(descending))
    return _above(probabilities, descending[count - 1], sure + count)


def _around(values: Floats, mass: float) -> tuple[np.float32, np.float32]:
    """Two of many `values` between which, as some of them tell, lies the last that is needed when the largest make up `mass`."""
    probes = np.sort(values[:: len(values) // _PROBES])[::-1]
    reached = np.cumsum(probes, dtype=np.float64)
    at = int(np.searchsorted(reached, mass / float(values.sum(dtype=np.float64)) * reached[-1]))
    return probes[min(at + _ASTRAY, len(probes) - 1)], probes[max(at - _ASTRAY, 0)]


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
