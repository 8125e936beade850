"""Measured points → the few costs behind them: of attention, of small nodes, of the engine. Pure; knows no model and no range.

Every law is a sum of terms that cost something each, and none can cost less than nothing: least squares of the relative
errors, over all subsets of the terms (there are three at most), the best whose coefficients are not negative.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aiasst.artifacts.device import AttentionPoint, Costs, OverheadPoint
from aiasst.profile.shapes import ModelShape

Doubles = npt.NDArray[np.float64]

_NOISY = 0.25
"""Noise beyond which a point of attention is left out, where others are there."""
_CACHED_SHARE = 0.7
"""What takes no more than this of the last-level cache stays in it."""
CHAIN_LAYERS = 6
"""Of the micro-model of attention, whose caches together are in the processor's cache or not."""
NODE_WIDTH = 576
"""Numbers of a row that the measured small node goes over."""
LAYER = ModelShape(
    model_type="llama", layers=1, hidden_size=512, intermediate_size=1536, vocab_size=1, heads=8, kv_heads=2, head_dim=64,
    context_length=4096, tied_embedding=True,
)  # fmt: skip
"""The layer that is measured as a whole."""
LAYER_FORMAT, LAYER_PAST = "int4-b128", 32
"""What its weights are in, and the tokens behind each row."""


@dataclass(frozen=True)
class AttentionLaw:
    """Seconds of the attention of one layer, keys and values in the processor's cache."""

    node: float
    """Whatever it attends to."""
    head: float
    """For each head of each new token of each row: rotating, copying, the softmax."""
    multiplication: float

    def seconds(self, nodes: float, heads: float, multiplications: float) -> float:
        """Of so much of each."""
        return self.node * nodes + self.head * heads + self.multiplication * multiplications


@dataclass(frozen=True)
class StepLaw:
    """Seconds of a step around the model's own work: the engine, and the run of the session."""

    step: float
    row: float
    score: float
    """For each entry of the vocabulary of each row."""


def least_squares(terms: Doubles, seconds: Doubles) -> Doubles:
    """Coefficients of `terms` [points, terms] for `seconds` [points], none negative; relative errors count (see above)."""
    scaled = terms / seconds[:, None]
    best, least = np.zeros(terms.shape[1]), math.inf
    for count in range(1, terms.shape[1] + 1):
        for chosen in itertools.combinations(range(terms.shape[1]), count):
            found, *_ = np.linalg.lstsq(scaled[:, chosen], np.ones(len(seconds)), rcond=None)
            error = float(np.sum((scaled[:, chosen] @ found - 1) ** 2))
            if found.min() >= 0 and error < least * (1 - 1e-9):
                best, least = np.zeros(terms.shape[1]), error
                best[list(chosen)] = found
    return best


def attention_law(costs: Costs, cache_bytes: int, *, decoding: bool) -> AttentionLaw | None:
    """The costs of attention for one new token of each row, or for many of one; None where they were not measured.

    Args:
        costs: of a device config.
        cache_bytes: last-level cache; what reading from memory took is taken out where keys and values do not fit into it.
        decoding: one new token.
    """
    wanted = [p for p in costs.attention if p.cache == "float32" and (p.new_tokens == 1) == decoding]
    quiet = [p for p in wanted if p.noise <= _NOISY]
    points = quiet if len(quiet) > 2 else wanted
    if len(points) < 2:
        return None
    read = max((point.gigabytes_per_second for point in costs.bandwidth), default=0.0) * 1e9
    terms = np.array([[1.0, p.rows * p.new_tokens * p.heads, multiplications(p)] for p in points])
    seconds = np.array([p.microseconds / 1e6 - _reading(p, cache_bytes, read) for p in points])
    return AttentionLaw(*least_squares(terms, seconds).tolist())


def multiplications(point: AttentionPoint) -> float:
    """Of queries with keys, and of weights with values; of what is masked only half."""
    return 2 * point.rows * point.new_tokens * point.heads * point.head_dim * (point.past + point.new_tokens / 2)


def _reading(point: AttentionPoint, cache_bytes: int, read: float) -> float:
    size = 2 * point.rows * point.kv_heads * (point.past + point.new_tokens) * point.head_dim * 4
    if CHAIN_LAYERS * size <= _CACHED_SHARE * cache_bytes or not read:
        return 0.0
    # Reading is hidden in part, so that something is left in any case.
    return min(size / read, 0.5 * point.microseconds / 1e6)


def step_law(points: Sequence[OverheadPoint]) -> StepLaw | None:
    """None where too few steps were measured."""
    steps = [point for point in points if point.kind == "step"]
    if len(steps) < 3:
        return None
    terms = np.array([[1.0, point.rows, point.rows * point.vocabulary] for point in steps])
    return StepLaw(*least_squares(terms, np.array([point.microseconds / 1e6 for point in steps])).tolist())


def node_law(points: Sequence[OverheadPoint]) -> Callable[[float], float] | None:
    """Numbers that a small node goes over → its seconds; between measured ones in a straight line. None: not measured."""
    found = sorted((point.rows * NODE_WIDTH, point.microseconds / 1e6) for point in points if point.kind == "node")
    if len(found) < 2:
        return None
    sizes, seconds = (np.array(column, dtype=np.float64) for column in zip(*found, strict=True))

    def node(numbers: float) -> float:
        if numbers > sizes[-1]:
            return float(seconds[-1] * numbers / sizes[-1])
        return float(np.interp(numbers, sizes, seconds))

    return node


@dataclass(frozen=True)
class LayerLaw:
    """Seconds of the whole layer that was measured, by rows; between and beyond them it goes with their logarithm."""

    one: float
    eight: float

    def seconds(self, rows: float) -> float:
        """With so many rows."""
        return self.one + (self.eight - self.one) * math.log(rows) / math.log(8)


def layer_law(points: Sequence[OverheadPoint], *, cached: bool) -> LayerLaw | None:
    """With weights from the cache or from memory; None where it was not measured."""
    found = {p.rows: p.microseconds / 1e6 for p in points if p.kind == "layer" and p.cached == cached}
    return LayerLaw(found[1], found[8]) if {1, 8} <= found.keys() else None
