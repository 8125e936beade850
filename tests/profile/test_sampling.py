"""Repeats on a noisy host, by a clock that the test turns."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiasst.profile.sampling import LEAST, MOST, Trial, noisiest_first, take_turns


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
    assert [trial.seconds for trial in trials] == [[1.0] * LEAST, [2.0] * LEAST]


def test_a_warm_trial_runs_once_more_before_it_is_timed() -> None:
    host = Host()
    trials = [host.trial("a", 1.0), host.trial("b", 2.0)]
    take_turns(trials, seconds=0, warm=True, clock=host.clock)
    assert host.order == ["a", "b"] + ["a", "a", "b", "b"] * LEAST
    assert [trial.seconds for trial in trials] == [[1.0] * LEAST, [2.0] * LEAST]


def test_repeats_end_with_the_time_or_with_the_most() -> None:
    host = Host()
    (trial,) = take_turns([host.trial("a", 1.0)], seconds=5.0, clock=host.clock)
    assert LEAST < len(trial.seconds) <= 6
    (trial,) = take_turns([host.trial("a", 0.0)], seconds=5.0, clock=host.clock)
    assert len(trial.seconds) == MOST


def test_what_is_dearer_than_the_longest_is_not_begun() -> None:
    host = Host()
    trials = [host.trial("a", 1.0), host.trial("b", 3.0), host.trial("c", 9.0)]
    assert take_turns(trials, seconds=0, longest=2.0, clock=host.clock) == trials[:2]
    assert "c" not in host.order


@given(st.lists(st.floats(1e-6, 10), min_size=1, max_size=40))
def test_noise_is_never_negative_and_none_where_all_are_alike(seconds: list[float]) -> None:
    trial = Trial(lambda: None, seconds)
    assert trial.noise >= 0
    assert Trial(lambda: None, [seconds[0]] * len(seconds)).noise == pytest.approx(0)


@given(st.lists(st.floats(0.5, 2), min_size=12, max_size=40), st.lists(st.floats(3, 10), max_size=40))
def test_what_came_in_a_busy_while_does_not_count_after_a_quiet_one(quiet: list[float], busy: list[float]) -> None:
    trial, alone = Trial(lambda: None, [*busy, *quiet]), Trial(lambda: None, quiet)
    assert (trial.best, trial.noise) == (alone.best, alone.noise)


def test_the_noisiest_is_measured_again_first() -> None:
    assert noisiest_first([0.05, 0.3, 0.2], lambda noise: noise) == [0.3, 0.2]
