"""Figures out of measured times: percentiles, best and median, noise, shares, ratios. Pure: reads no clock and runs nothing."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from aiasst.artifacts.model_folder import Weight

LEAST_STEPS, MOST_STEPS = 8, 64
"""Of one measurement of decoding."""
_ROW_BY_ROW = frozenset({"embed", "position_embed", "type_embed", "rotary"})
"""Roles of which a token reads one row, not all."""


class Metered(Protocol):
    """Work whose energy was counted."""

    @property
    def tokens(self) -> int:
        """Read or written."""

    @property
    def joules(self) -> float | None:
        """None where it was not counted."""


@dataclass(frozen=True)
class Speed:
    """What repeated measurements of one speed came to."""

    best: float
    """What the machine can do: others on it only ever take time away."""
    median: float

    @property
    def noise(self) -> float:
        """How far the median lies below the best: 0.1 is a tenth."""
        return 1 - self.median / self.best

    @classmethod
    def of(cls, samples: Sequence[float]) -> Speed:
        """Of at least one positive figure."""
        return cls(max(samples), statistics.median(samples))


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which this share (0 … 1) of `values` lies; in a straight line between two of them."""
    return float(np.quantile(np.asarray(values, np.float64), share))


def steady_speed(sequences: int, steps: Sequence[float]) -> float:
    """Tokens a second of `sequences` answers, by the median of their steps' seconds: a stall in one is not the model's."""
    return sequences / statistics.median(steps)


def overhead_share(walls: Sequence[float], insides: Sequence[float]) -> float:
    """Share of a step's wall time outside of what took `insides` seconds, 0 … 1: the median of the steps."""
    return statistics.median(min(1.0, max(0.0, 1 - inside / wall)) for wall, inside in zip(walls, insides, strict=True))


def bandwidth_share(token_bytes: int, tokens_per_second: float, bytes_per_second: float) -> float:
    """Share of the memory bandwidth that reading `token_bytes` a token comes to; above 1 where caches serve some of them."""
    return token_bytes * tokens_per_second / bytes_per_second


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median of the ratios of each round: what slows a whole round down hits both.

    Between the two in the middle of an even number lies their geometric mean, so that A over B is one over B over A.
    """
    return math.exp(statistics.median(math.log(own / other) for own, other in zip(ours, theirs, strict=True)))


def bytes_per_token(weights: Mapping[str, Weight]) -> int:
    """Bytes of weights that decoding one token at one sequence reads.

    Everything but tables of which one row is looked up; an embedding that a head shares is read whole, as the head.
    """
    shared = {weight.shared_with for weight in weights.values() if weight.role not in _ROW_BY_ROW}
    return sum(weight.bytes for name, weight in weights.items() if weight.role not in _ROW_BY_ROW or name in shared)


def energy_per_token(samples: Sequence[Metered]) -> float | None:
    """Joules a token over all samples; None where they counted none.

    The sums, not the median of the rounds: a counter moves about once in a millisecond, which is much of a short round.
    """
    counted = [sample for sample in samples if sample.joules is not None]
    joules = sum(sample.joules or 0.0 for sample in counted)
    return joules / sum(sample.tokens for sample in counted) if joules > 0 else None


def steps_within(seconds: float, step_seconds: float, fixed_seconds: float, most: int = MOST_STEPS) -> int:
    """Steps of decoding that a round of `seconds` has time for, beside what takes `fixed_seconds`; 8 at least, `most` at most."""
    steps = int(max(0.0, seconds - fixed_seconds) / max(step_seconds, 1e-9))
    return min(most, max(LEAST_STEPS, steps))
