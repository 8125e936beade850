"""Who gets how much of one memory ceiling: numbers of bytes in, a plan out. Knows no engine and loads nothing.

All models together stay under the ceiling. Where the weights of all fit, each may take its own and an equal part of what is left
for its cache, and nothing is ever unloaded. Where they do not, a model may take a share of what its weights leave, the rest is for
others, and models that are idle make room.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_LEAST_TOKENS = 256
"""Of a cache: one short conversation."""
_CACHE_SHARE = 0.5
"""Of what is left beside a model's weights, where models must take turns."""


@dataclass(frozen=True)
class Needs:
    """What a model asks of memory, in bytes."""

    weights: int
    """In memory, with the working memory of a step."""
    least_cache: int
    """For one short sequence."""
    most_cache: int
    """More than this it cannot use."""

    @property
    def least(self) -> int:
        """Less than this and it cannot be loaded."""
        return self.weights + self.least_cache


@dataclass(frozen=True)
class Held:
    """What a loaded model may take."""

    bytes: int
    idle_seconds: float | None
    """Since it was asked last; None: it is being asked, and cannot be unloaded."""


def ceilings(total: int, needs: Sequence[Needs]) -> list[int]:
    """What each model may take at most, in bytes, when it is loaded; see above. May be less than it needs: then it never fits."""
    left = total - sum(each.weights for each in needs)
    if left >= sum(each.least_cache for each in needs):
        return [each.weights + max(each.least_cache, min(each.most_cache, left // len(needs))) for each in needs]
    return [_alone(total, each) for each in needs]


def to_unload(total: int, wanted: int, held: Sequence[Held], *, after_seconds: float) -> list[int] | None:
    """Indices of models to unload so that `wanted` bytes fit, the longest idle first; None: they do not fit now.

    Only models that nobody asks, and asked for `after_seconds`, are unloaded.
    """
    free = total - sum(each.bytes for each in held)
    idle = sorted(
        ((each.idle_seconds, index) for index, each in enumerate(held) if each.idle_seconds is not None), reverse=True
    )
    chosen: list[int] = []
    for seconds, index in idle:
        if free >= wanted or seconds < after_seconds:
            break
        chosen.append(index)
        free += held[index].bytes
    return chosen if free >= wanted else None


def least_cache_tokens(context: int) -> int:
    """Tokens of the smallest cache of a model with this context."""
    return min(_LEAST_TOKENS, context)


def _alone(total: int, needs: Needs) -> int:
    share = int((total - needs.weights) * _CACHE_SHARE)
    return min(total, needs.weights + max(needs.least_cache, min(needs.most_cache, share)))
