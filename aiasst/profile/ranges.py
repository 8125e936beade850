"""A figure that is predicted, with what it may be at least and at most. Knows no machine and no model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """`low` <= `value` <= `high`, none below zero."""

    low: float
    value: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.value <= self.high:
            raise ValueError(f"{self.low} <= {self.value} <= {self.high} is no range")

    @classmethod
    def exact(cls, value: float) -> Range:
        """A figure that is known."""
        return cls(value, value, value)

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.value + other.value, self.high + other.high)

    def times(self, factor: float) -> Range:
        """All three `factor` (at least 0) times."""
        return Range(self.low * factor, self.value * factor, self.high * factor)

    def by(self, other: Range) -> Range:
        """The product of two uncertain figures."""
        return Range(self.low * other.low, self.value * other.value, self.high * other.high)

    def under(self, amount: float) -> Range:
        """`amount` divided by it: the seconds that `amount` takes at so much a second, and the other way round."""
        return Range(amount / self.high, amount / self.value, amount / self.low)


def total(ranges: Iterable[Range]) -> Range:
    """The sum; uncertainties are taken to lie on the same side, which errs towards a wide range."""
    found = list(ranges)
    return Range(sum(r.low for r in found), sum(r.value for r in found), sum(r.high for r in found))
