from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiasst.quantize.planning.solve import Limit, front, least, total


@st.composite
def tables(draw: st.DrawFn, rows: int = 5, columns: int = 4) -> tuple[npt.NDArray[np.float64], ...]:
    """Costs, sizes, times and what is allowed; ties and zeros included."""
    n, m = draw(st.integers(1, rows)), draw(st.integers(1, columns))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    coarse = draw(st.booleans())
    cost, size, time = (random.integers(0, 5 if coarse else 10**6, (n, m)).astype(np.float64) for _ in range(3))
    if not coarse:
        cost = np.exp(cost / 1e5 - 8)
    allowed = random.random((n, m)) < 0.8
    allowed[:, 0] = True
    return cost, size, time, allowed


def _brute(cost: npt.NDArray[np.float64], allowed: npt.NDArray[np.bool_], limits: list[Limit]) -> float | None:
    choices = itertools.product(*(np.flatnonzero(row).tolist() for row in allowed))
    costs = [
        total(cost, np.array(choice))
        for choice in choices
        if all(total(limit.table, np.array(choice)) <= limit.most for limit in limits)
    ]
    return min(costs, default=None)


@settings(deadline=None, max_examples=60)
@given(tables(), st.floats(0, 1), st.floats(0, 1), st.integers(0, 2))
def test_the_plan_is_the_best_there_is(
    case: tuple[npt.NDArray[np.float64], ...], share: float, other: float, count: int
) -> None:
    cost, size, time, allowed = case
    limits = [Limit(size, share * size.sum() / 2), Limit(time, other * time.sum() / 2)][:count]
    choice, best = least(cost, allowed, limits), _brute(cost, allowed, limits)
    if choice is None:
        assert best is None
        return
    assert best is not None
    assert total(cost, choice) == pytest.approx(best, rel=1e-9, abs=1e-12)
    assert all(total(limit.table, choice) <= limit.most for limit in limits)
    assert allowed[np.arange(len(choice)), choice].all()


@settings(deadline=None, max_examples=60)
@given(tables(rows=40, columns=9), st.lists(st.floats(0, 1), min_size=2, max_size=4))
def test_more_budget_never_gives_more_loss(case: tuple[npt.NDArray[np.float64], ...], shares: list[float]) -> None:
    cost, size, _, allowed = case
    losses = []
    for share in sorted(shares):
        choice = least(cost, allowed, [Limit(size, share * size.max(axis=1).sum())])
        losses.append(np.inf if choice is None else total(cost, choice))
    assert losses == sorted(losses, reverse=True)


@settings(deadline=None, max_examples=60)
@given(tables(rows=12, columns=6))
def test_the_front_goes_from_the_smallest_to_the_best(case: tuple[npt.NDArray[np.float64], ...]) -> None:
    cost, size, _, allowed = case
    points = front(cost, size, allowed, 8)
    best = least(cost, allowed)
    assert best is not None
    assert total(cost, points[-1]) == total(cost, best)
    assert all(total(cost, a) > total(cost, b) for a, b in itertools.pairwise(points))
    assert all(total(size, a) < total(size, b) for a, b in itertools.pairwise(points))


def test_a_large_model_is_planned_in_a_moment() -> None:
    # 80 layers of 4 units; losses of all sizes, alike layers among them.
    random = np.random.default_rng(1)
    size = np.tile(np.sort(random.integers(10**6, 10**8, (4, 9)), axis=1), (80, 1)).astype(np.float64)
    cost = -np.sort(-np.exp(random.normal(-6, 3, (320, 9))), axis=1)
    choice = least(cost, np.ones(size.shape, bool), [Limit(size, size.min(axis=1).sum() * 3)])
    assert choice is not None
    assert total(size, choice) <= size.min(axis=1).sum() * 3


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_no_numbers_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        least(np.array([[bad, 1.0]]), np.ones((1, 2), bool))
    with pytest.raises(ValueError, match="without a choice"):
        least(np.ones((1, 2)), np.zeros((1, 2), bool))
