"""The token buckets keep their law, for whatever order of requests and however few buckets there may be."""

from __future__ import annotations

from itertools import accumulate, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiasst.serve.guard.rate import ROUNDING, Rate, who

RATES = st.floats(0.5, 6000)
PAUSES = st.one_of(st.just(0.0), st.floats(0, 0.5), st.floats(0, 200))


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@settings(max_examples=50)
@given(
    per_minute=RATES,
    asked=st.lists(st.tuples(PAUSES, st.integers(0, 5)), min_size=1, max_size=200),
    most=st.integers(1, 8),
)
def test_never_more_than_burst_and_rate_between_any_two_moments(
    per_minute: float, asked: list[tuple[float, int]], most: int
) -> None:
    clock = Clock()
    rate = Rate(per_minute, clock=clock, most_buckets=most)
    through: dict[int, list[float]] = {}
    for pause, name in asked:
        clock.now += pause
        if rate.ask(str(name)).allowed:
            through.setdefault(name, []).append(clock.now)
        assert len(rate) <= most
    for moments in through.values():
        for first in range(len(moments)):
            for last in range(first, len(moments)):
                allowed = rate.burst + rate.rate * (moments[last] - moments[first])
                assert last - first + 1 <= allowed + 1e-3


@settings(max_examples=50)
@given(per_minute=RATES, pauses=st.lists(st.floats(0, 100), max_size=200), greedy=st.integers(0, 20))
def test_who_never_asks_faster_than_the_rate_is_never_refused(
    per_minute: float, pauses: list[float], greedy: int
) -> None:
    clock = Clock()
    rate = Rate(per_minute, clock=clock)
    for pause in pauses:
        clock.now += 1 / rate.rate + pause
        for _ in range(greedy):
            rate.ask("greedy")
        assert rate.ask("well-behaved").allowed


@settings(max_examples=50)
@given(per_minute=RATES)
def test_it_is_let_through_after_the_wait_it_was_told(per_minute: float) -> None:
    clock = Clock()
    rate = Rate(per_minute, clock=clock)
    whole = int(rate.burst + ROUNDING)
    standings = [rate.ask("a") for _ in range(whole + 1)]
    assert [standing.allowed for standing in standings] == [True] * whole + [False]
    assert all(before.remaining == after.remaining + 1 for before, after in pairwise(standings[:-1]))
    clock.now += standings[-1].wait * 0.99
    assert not rate.ask("a").allowed
    clock.now += standings[-1].wait * 0.011
    assert rate.ask("a").allowed


def test_a_refused_request_costs_nothing() -> None:
    clock = Clock()
    rate = Rate(60, clock=clock)
    while rate.ask("a").allowed:
        pass
    for moment in accumulate([0.009] * 100):
        clock.now = moment
        assert not rate.ask("a").allowed
    clock.now = 1.0
    assert rate.ask("a").allowed


def test_a_crowd_of_newcomers_gives_nobody_a_new_bucket() -> None:
    clock = Clock()
    rate = Rate(60, clock=clock, most_buckets=4)
    while rate.ask("a").allowed:
        pass
    crowd = [rate.ask(f"newcomer {number}").allowed for number in range(1000)]
    assert len(rate) == 4
    # Three have buckets of their own, all others share one.
    assert sum(crowd) == 3 + 30
    assert not rate.ask("a").allowed
    clock.now += 60
    assert rate.ask("newcomer 999").allowed
    assert len(rate) == 4


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("testclient", "testclient"),
    ],
)
def test_addresses_of_one_host_count_as_one(address: str, counted: str) -> None:
    assert who(address) == counted
