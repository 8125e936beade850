"""Rounds under a clock of our own."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from aiasst.bench.rounds import LEAST_ROUNDS, Series, interleave
from aiasst.progress import Progress


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def run(costs: list[float], seconds: float) -> tuple[list[str], list[Series[float]], Clock, list[Progress]]:
    clock, order, events = Clock(), [], []

    def one(name: str, cost: float) -> Series[float]:
        def measure(number: int) -> float:
            order.append(f"{name}{number}")
            clock.now += cost
            return cost

        return Series(name, measure)

    series = [one("abcdef"[index], cost) for index, cost in enumerate(costs)]
    interleave(series, seconds=seconds, clock=clock, sleep=clock.sleep, progress=events.append)
    return order, series, clock, events


def test_everything_in_turn() -> None:
    order, _, _, events = run([1, 1], seconds=9)
    assert order == ["a0", "b0", "a1", "b1", "a2", "b2", "a3", "b3"]
    assert (events[-1].done, events[-1].total, events[-1].note) == (1, 1, "4 rounds")


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=6), st.floats(-5, 100))
@settings(deadline=None)
def test_the_time_is_kept_once_the_least_is_done(costs: list[float], seconds: float) -> None:
    order, series, clock, events = run(costs, seconds)
    rounds = len(order) // len(costs)
    assert {len(one.samples) for one in series} == {rounds}
    assert rounds >= LEAST_ROUNDS
    assert rounds == LEAST_ROUNDS or clock.now <= seconds * (1 + 1e-9)
    shares = [event.done for event in events]
    assert shares == sorted(shares) and shares[-1] == 1
    assert all(share < 1 for share in shares[:-1])
