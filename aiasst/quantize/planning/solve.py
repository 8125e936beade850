"""The exact planner: one choice for each row of a table, of least cost, within limits. Arrays in, arrays out; knows no model.

This is the multiple-choice knapsack problem. Prices on what is limited (Lagrange multipliers) turn it into one where every row
chooses alone; its value is a bound that no choice beats, and what a row pays above its own best choice is a detour. The best
choice makes detours of no more than its distance from the bound, so dynamic programming over the rows keeps the few states whose
detours stay below a guess of that distance. When the best one found lies within the guess it is proven; else the guess grows.
Partial choices that another one beats in everything are dropped on the way. Sums are compared as they are: no solver's
tolerance comes between the user and the limit.

Sources: Kellerer, Pferschy, Pisinger 2004, Knapsack Problems, chapter 11 (dominance, reduction by bounds); Fisher 1981 (prices).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Table = npt.NDArray[np.float64]
"""float64 [rows, columns]: what each choice costs or takes."""
Choice = npt.NDArray[np.int64]
"""int64 [rows]: the column chosen in each row."""

_GOLDEN = (5**0.5 - 1) / 2
_STEPS, _NESTED_STEPS = 60, 36
"""Of the search for a price: each takes off a third of what is left of the range."""
_LEAP, _GROWTH = 3.0, 1.5
_ROUNDING = 1e-12
"""Share of a sum that adding in another order may change."""
_CHUNK = 512


@dataclass(frozen=True)
class Limit:
    """The chosen entries of `table`, none of them negative, may add up to `most`."""

    table: Table
    most: float


def total(table: npt.NDArray[np.float64] | npt.NDArray[np.int64], choice: Choice) -> float:
    """What `choice` adds up to in `table`."""
    return float(table[np.arange(len(choice)), choice].sum())


def least(cost: Table, allowed: npt.NDArray[np.bool_], limits: Sequence[Limit] = ()) -> Choice | None:
    """The choice of least total `cost` within `limits`, among the `allowed` columns; None where there is none.

    Raises:
        ValueError: a row allows nothing, or a number is not finite (mistakes of the caller).
    """
    _check(cost, allowed, limits)
    free = _argmin(cost, allowed)
    if all(total(limit.table, free) <= limit.most for limit in limits):
        return free
    if any(total(limit.table, _argmin(limit.table, allowed)) > limit.most for limit in limits):
        return None
    prices = _prices(cost, allowed, limits)
    bound, detours = _relaxed(cost, allowed, limits, prices)
    walk = _Walk(cost, allowed, limits, detours)
    # The smallest guess that is worth a try: what the cheapest row pays for another choice.
    guess = _smallest_detour(detours, allowed)
    while True:
        choice = walk.best(guess)
        distance = walk.longest if choice is None else total(cost, choice) - bound
        if distance <= guess or guess >= walk.longest:
            return choice
        # With one limit few states survive, and the distance found is proven at once; with more they multiply with the guess.
        factor = _LEAP if choice is None else _GROWTH if len(limits) > 1 else np.inf
        guess = min(guess * factor, distance * (1 + _ROUNDING) + _ROUNDING * abs(bound))


def front(
    cost: Table, size: Table, allowed: npt.NDArray[np.bool_], points: int, limits: Sequence[Limit] = ()
) -> list[Choice]:
    """Choices of least `cost` at about `points` sizes between the smallest and that of least cost, each smaller than the next.

    The sizes lie evenly on a logarithmic scale. A choice that costs no less than a smaller one is left out.
    """
    best = least(cost, allowed, limits)
    smallest = least(size, allowed, limits)
    if best is None or smallest is None:
        return []
    bounds = np.geomspace(max(total(size, smallest), 1e-300), max(total(size, best), 1e-300), points)
    bounds[0], bounds[-1] = total(size, smallest), total(size, best)
    found: list[Choice] = []
    for bound in bounds:
        choice = least(cost, allowed, [*limits, Limit(size, float(bound))])
        if choice is not None and (not found or total(cost, choice) < total(cost, found[-1])):
            found.append(choice)
    return found


def _check(cost: Table, allowed: npt.NDArray[np.bool_], limits: Sequence[Limit]) -> None:
    if not allowed.any(axis=1).all():
        raise ValueError("a row without a choice")
    if not all(np.isfinite(table[allowed]).all() for table in (cost, *(limit.table for limit in limits))):
        raise ValueError("a table holds numbers that are not finite")


def _argmin(table: Table, allowed: npt.NDArray[np.bool_]) -> Choice:
    choice: Choice = np.where(allowed, table, np.inf).argmin(axis=1).astype(np.int64)
    return choice


# ---------------------------------------------------------------------- the bound


def _relaxed(
    cost: Table, allowed: npt.NDArray[np.bool_], limits: Sequence[Limit], prices: Sequence[float]
) -> tuple[float, Table]:
    """The bound that `prices` give, and each choice's detour [rows, columns] (infinite where it is not allowed)."""
    priced = np.where(allowed, cost, np.inf)
    for limit, price in zip(limits, prices, strict=True):
        priced = priced + price * np.where(allowed, limit.table, 0.0)
    best = priced.min(axis=1)
    bound = best.sum() - sum(price * limit.most for limit, price in zip(limits, prices, strict=True))
    return float(bound), priced - best[:, None]


def _prices(
    cost: Table, allowed: npt.NDArray[np.bool_], limits: Sequence[Limit], *, nested: bool = False
) -> list[float]:
    """Prices of about the highest bound: golden section in the logarithm of each, one inside the other.

    The bound is concave in the prices, hence has one peak along each. Any prices keep the result exact; good ones make it quick.
    """
    if not limits:
        return []
    first, *rest = limits

    def bound_at(price: float) -> tuple[float, list[float]]:
        priced = cost + price * first.table
        prices = _prices(priced, allowed, rest, nested=True)
        return _relaxed(priced, allowed, rest, prices)[0] - price * first.most, [price, *prices]

    low, high = _range_of_prices(cost, first.table, allowed)
    left, right = np.log(low), np.log(high)
    inner = [right - _GOLDEN * (right - left), left + _GOLDEN * (right - left)]
    values = [bound_at(float(np.exp(x))) for x in inner]
    for _ in range(_NESTED_STEPS if rest or nested else _STEPS):
        if values[0][0] >= values[1][0]:
            right = inner[1]
            inner = [right - _GOLDEN * (right - left), inner[0]]
            values = [bound_at(float(np.exp(inner[0]))), values[0]]
        else:
            left = inner[0]
            inner = [inner[1], left + _GOLDEN * (right - left)]
            values = [values[1], bound_at(float(np.exp(inner[1])))]
    return max([*values, bound_at(0.0)], key=lambda value: value[0])[1]


def _range_of_prices(cost: Table, table: Table, allowed: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Below the first nobody saves anything, above the second everybody takes the least."""
    costs, takes = np.where(allowed, cost, np.nan), np.where(allowed, table, np.nan)
    cost_steps = np.abs(costs[:, :, None] - costs[:, None, :])
    take_steps = np.abs(takes[:, :, None] - takes[:, None, :])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = cost_steps / take_steps
    ratios = ratios[np.isfinite(ratios) & (ratios > 0)]
    return (float(ratios.min()) / 2, float(ratios.max()) * 2) if len(ratios) else (1e-3, 1e3)


def _smallest_detour(detours: Table, allowed: npt.NDArray[np.bool_]) -> float:
    positive = detours[allowed & (detours > 0)]
    return float(positive.min()) if len(positive) else 1e-300


# ---------------------------------------------------------------------- the walk


class _Walk:
    """Dynamic programming over the rows: a state is a choice for the rows so far."""

    def __init__(self, cost: Table, allowed: npt.NDArray[np.bool_], limits: Sequence[Limit], detours: Table) -> None:
        self._values = np.stack([cost, *(limit.table for limit in limits)])
        self._most = np.array([np.inf, *(limit.most for limit in limits)])
        self._detours = detours
        least_left = np.where(allowed, self._values, np.inf).min(axis=2)
        # Rows with the fewest reasonable choices come first, so that states multiply late.
        runner_up = np.sort(detours, axis=1)[:, min(1, detours.shape[1] - 1)]
        self._order = np.argsort(-runner_up, kind="stable")
        ordered = least_left[:, self._order]
        self._left = ordered.sum(axis=1, keepdims=True) - np.cumsum(ordered, axis=1)
        self.longest = float(np.where(allowed, detours, 0.0).max(axis=1).sum()) * (1 + _ROUNDING) + 1e-300
        """No choice makes longer detours."""

    def best(self, guess: float) -> Choice | None:
        """The cheapest choice within the limits whose detours add up to no more than `guess`."""
        sums = np.zeros((len(self._values), 1))
        detour = np.zeros(1)
        steps: list[tuple[Choice, Choice]] = []
        slack = _ROUNDING * np.abs(self._most[1:, None])
        for position, row in enumerate(self._order):
            columns = np.flatnonzero(self._detours[row] <= guess)
            longer = (detour[:, None] + self._detours[row, columns]).ravel()
            more = (sums[:, :, None] + self._values[:, None, row, columns]).reshape(len(sums), -1)
            fits = (more[1:] + self._left[1:, position, None] <= self._most[1:, None] + slack).all(axis=0)
            keep = np.flatnonzero((longer <= guess) & fits)
            keep = keep[_undominated(more[:, keep])]
            if not len(keep):
                return None
            sums, detour = more[:, keep], longer[keep]
            steps.append((keep // len(columns), columns[keep % len(columns)]))
        for state in np.argsort(sums[0], kind="stable"):
            choice = self._traced(steps, int(state))
            # Summed in the order of the rows, as the caller will.
            if all(total(self._values[i], choice) <= self._most[i] for i in range(1, len(self._most))):
                return choice
        return None

    def _traced(self, steps: Sequence[tuple[Choice, Choice]], state: int) -> Choice:
        choice = np.empty(len(self._order), dtype=np.int64)
        for row, (parents, columns) in zip(self._order[::-1], reversed(steps), strict=True):
            choice[row] = columns[state]
            state = int(parents[state])
        return choice


def _undominated(sums: Table) -> Choice:
    """Indices of the states [quantities, states] that no other one equals or beats in every quantity."""
    order = np.lexsort(sums[::-1])
    ordered = sums[:, order]
    if len(sums) == 2:
        smaller = np.minimum.accumulate(ordered[1])
        keep = np.ones(len(order), dtype=np.bool_)
        keep[1:] = ordered[1, 1:] < smaller[:-1]
        return order[keep]
    kept = np.empty((len(sums), 0))
    indices: list[Choice] = []
    for start in range(0, len(order), _CHUNK):
        chunk = ordered[:, start : start + _CHUNK]
        # What comes earlier in the order is no larger in the first quantity.
        by_kept: npt.NDArray[np.bool_] = np.logical_and.reduce(kept[1:, None, :] <= chunk[1:, :, None], axis=0)
        inside: npt.NDArray[np.bool_] = np.logical_and.reduce(chunk[1:, None, :] <= chunk[1:, :, None], axis=0)
        earlier: npt.NDArray[np.bool_] = np.tril(inside, -1)
        beaten = by_kept.any(axis=1) | earlier.any(axis=1)
        kept = np.concatenate([kept, chunk[:, ~beaten]], axis=1)
        indices.append(order[start : start + _CHUNK][~beaten])
    return np.concatenate(indices) if indices else order
