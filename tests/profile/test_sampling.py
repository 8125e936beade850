"""Repeats on a noisy host, by a clock that the test turns."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiasst.profile.sampling import LEAST, LEAST_VISITS, MOST, MOST_VISITS, QUIET, Trial, take_turns, visit_until_quiet


@dataclass
class Host:
    """Work takes what is told, in turn, and time passes only so."""

    now: float = 0.0
    order: list[str] = field(default_factory=list)

    def clock(self) -> float:
        return self.now

    def trial(self, name: str, *seconds: float) -> Trial:
        told = list(seconds)

        def run() -> None:
            self.order.append(name)
            self.now += told.pop(0) if len(told) > 1 else told[0]

        return Trial(run)


def test_trials_take_turns_and_the_first_run_does_not_count() -> None:
    host = Host()
    trials = [host.trial("a", 9.0, 1.0), host.trial("b", 9.0, 2.0)]
    take_turns(trials, seconds=0, clock=host.clock)
    assert host.order == ["a", "b"] * (1 + LEAST)
    assert [trial.visits for trial in trials] == [[[1.0] * LEAST], [[2.0] * LEAST]]


def test_a_warm_trial_runs_once_more_before_it_is_timed() -> None:
    host = Host()
    trials = [host.trial("a", 1.0), host.trial("b", 2.0)]
    take_turns(trials, seconds=0, warm=True, clock=host.clock)
    assert host.order == ["a", "b"] + ["a", "a", "b", "b"] * LEAST
    assert [trial.visits for trial in trials] == [[[1.0] * LEAST], [[2.0] * LEAST]]


def test_repeats_end_with_the_time_or_with_the_most() -> None:
    host = Host()
    (trial,) = take_turns([host.trial("a", 1.0)], seconds=5.0, clock=host.clock)
    assert LEAST < len(trial.visits[0]) <= 6
    (trial,) = take_turns([host.trial("a", 0.0)], seconds=5.0, clock=host.clock)
    assert len(trial.visits[0]) == MOST


def test_what_is_dearer_than_the_longest_is_not_begun() -> None:
    host = Host()
    trials = [host.trial("a", 1.0), host.trial("b", 3.0), host.trial("c", 9.0)]
    assert take_turns(trials, seconds=0, longest=2.0, clock=host.clock) == trials[:2]
    assert "c" not in host.order


seconds = st.floats(1e-6, 10)


@given(st.lists(st.lists(seconds, min_size=1, max_size=8), min_size=1, max_size=4))
def test_noise_is_never_negative_and_none_where_all_are_alike(visits: list[list[float]]) -> None:
    trial = Trial(lambda: None, visits)
    assert trial.best == min(map(min, visits))
    assert trial.noise >= 0
    assert Trial(lambda: None, [[visits[0][0]] * len(visit) for visit in visits]).noise == pytest.approx(0)


@given(st.lists(st.floats(3, 10), min_size=1, max_size=8))
def test_a_busy_visit_does_not_count_after_two_quiet_ones(busy: list[float]) -> None:
    assert Trial(lambda: None, [busy, [1.0, 2.0], [1.02, 9.0]]).noise == pytest.approx(0.02)
    # Repeats of one visit agree with each other; it is the other visit that tells that they were all too slow.
    assert Trial(lambda: None, [[3.0, 3.0, 3.0]]).noise == 0
    assert Trial(lambda: None, [[3.0, 3.0, 3.0], [2.0, 2.0]]).noise == pytest.approx(0.5)


def visited(noises: dict[str, float], most: int, refused: str = "") -> tuple[list[str], list[str]]:
    """The order of at most `most` visits, and those that were visited at last."""
    order: list[str] = []

    def visit(name: str) -> bool:
        order.append(name)
        return name != refused

    known = visit_until_quiet(noises, visit, lambda name: noises[name], lambda: len(order) >= most)
    return order, known


def test_all_are_visited_twice_and_the_noisy_ones_again_the_noisiest_first() -> None:
    noises = {"a": QUIET, "b": 2 * QUIET, "c": 3 * QUIET}
    order, known = visited(noises, most=100)
    assert order == ["a", "b", "c"] * LEAST_VISITS + ["c", "b"] * (MOST_VISITS - LEAST_VISITS)
    assert known == ["a", "b", "c"]


def test_no_visit_is_begun_when_time_is_over() -> None:
    noises = dict.fromkeys("abc", 1.0)
    assert visited(noises, most=4) == (["a", "b", "c", "a"], ["a", "b", "c"])
    assert visited(noises, most=2) == (["a", "b"], ["a", "b"])
    assert visited(noises, most=0) == ([], [])


def test_what_cannot_be_measured_is_visited_once() -> None:
    order, known = visited(dict.fromkeys("abc", 0.0), most=100, refused="b")
    assert order == ["a", "b", "c", "a", "c"]
    assert known == ["a", "c"]
