"""What was measured comes back, stalls hardly count, and the number of rows follows the curve."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiasst.engine.costs import DRAFTS_REMEMBERED, FARTHEST, LEAST_CHUNK, REMEMBERED, Costs


def learned(curve: dict[int, float], samples: int = 2) -> Costs:
    costs = Costs()
    for rows, seconds in curve.items():
        for _ in range(samples):
            costs.decoded(rows, seconds)
    return costs


def test_nothing_is_known_at_first() -> None:
    costs = Costs()
    assert costs.token_seconds is None
    assert costs.step_seconds(1) is None
    assert costs.best_rows(7, 0.001) == 7


@settings(max_examples=40, deadline=None)
@given(cost=st.floats(1e-6, 1.0), counts=st.lists(st.integers(LEAST_CHUNK, 400), min_size=1, max_size=20))
def test_a_constant_cost_is_found_exactly(cost: float, counts: list[int]) -> None:
    costs = Costs()
    for count in counts:
        costs.read(count, cost * count)
        costs.decoded(3, cost)
    assert costs.token_seconds == pytest.approx(cost)
    assert costs.step_seconds(3) == pytest.approx(cost)


def test_a_few_tokens_tell_what_a_run_costs_and_not_what_a_token_does() -> None:
    costs = Costs()
    costs.read(1, 0.017)
    assert costs.token_seconds is None
    costs.read(100, 0.27)
    costs.read(2, 0.017)
    assert costs.token_seconds == pytest.approx(0.0027)


def test_a_stall_hardly_counts_and_a_slower_machine_is_found_out() -> None:
    costs = learned({8: 0.04}, samples=20)
    for _ in range(10):
        costs.read(256, 0.7)
    costs.decoded(8, 9.0)
    costs.read(256, 9.0)
    assert costs.step_seconds(8) == pytest.approx(0.04 * 1.4)
    assert costs.token_seconds is not None and costs.token_seconds < 2 * 0.7 / 256
    for _ in range(30):
        costs.decoded(8, 0.12)
        costs.read(256, 2.1)
    assert costs.step_seconds(8) == pytest.approx(0.12, rel=0.01)
    assert costs.token_seconds == pytest.approx(2.1 / 256, rel=0.01)


def test_between_and_beyond_what_was_measured() -> None:
    costs = learned({1: 0.017, 8: 0.040})
    assert costs.step_seconds(4) == pytest.approx(0.017 + 3 * 0.023 / 7)
    assert costs.step_seconds(16) == pytest.approx(0.040 + 8 * 0.023 / 7)
    assert learned({4: 0.03}).step_seconds(9) == pytest.approx(0.03)


def test_one_step_of_a_new_size_is_not_relied_on() -> None:
    costs = learned({1: 0.017, 8: 0.040})
    costs.decoded(9, 3.0)
    assert costs.best_rows(16, 0.25) == 16


def test_a_stall_in_the_first_steps_does_not_count() -> None:
    costs = learned({1: 0.017})
    costs.decoded(2, 3.0)
    assert not costs.knows(2)
    costs.decoded(2, 0.020)
    assert costs.knows(2) and costs.step_seconds(2) == pytest.approx(0.020)


def test_rows_stop_where_the_step_is_too_slow_or_more_give_less() -> None:
    affine = learned({1: 0.017, 8: 0.040, 16: 0.065})
    assert affine.best_rows(16, 0.25) == 16
    assert affine.best_rows(16, 0.040) == 8
    assert affine.best_rows(16, 0.001) == 1  # one answer is always worked on
    knee = learned({1: 0.017, 8: 0.040, 9: 0.080, 10: 0.090})
    assert knee.best_rows(10, 0.25) == 8
    assert knee.best_rows(16, 0.25) == 8


def test_what_was_slow_once_is_tried_again() -> None:
    costs = learned({1: 0.017, 8: 0.040, 9: 0.080})
    assert costs.best_rows(9, 0.25) == 8
    for _ in range(REMEMBERED + 1):
        costs.decoded(8, 0.040)
    assert costs.best_rows(9, 0.25) == 9


def test_answers_are_expected_as_long_as_answers_were() -> None:
    costs = Costs()
    assert costs.expected(100) == 100
    for _ in range(200):
        costs.answered(25, 100)
    assert costs.expected(40) == pytest.approx(10, rel=0.01)


def verified(curve: dict[int, float], samples: int = 2) -> Costs:
    costs = Costs()
    for tokens, seconds in curve.items():
        for _ in range(samples):
            costs.verified(tokens, seconds)
    return costs


def test_a_run_over_a_draft_is_guessed_between_and_a_little_beyond_what_was_measured() -> None:
    assert Costs().verify_seconds(1) is None
    assert verified({1: 0.017}, samples=1).verify_seconds(1) is None
    costs = verified({1: 0.017, 8: 0.038})
    assert costs.verify_seconds(4) == pytest.approx(0.017 + 3 * 0.003)
    assert costs.verify_seconds(16) == pytest.approx(0.038 + 8 * 0.003)
    assert costs.verify_seconds(8 * FARTHEST + 1) is None
    costs.read(256, 256 * 0.005)
    assert costs.verify_seconds(16) == pytest.approx(0.038 + 8 * 0.005)  # a token of a prompt takes more
    assert costs.verify_seconds(4) == pytest.approx(0.017 + 3 * 0.003)
    costs.verified(16, 3.0)  # a stall, perhaps
    assert costs.verify_seconds(16) == pytest.approx(0.038 + 8 * 0.005)


def test_a_run_over_a_draft_that_was_dear_once_is_forgotten() -> None:
    costs = verified({1: 0.017, 4: 3.0})
    assert costs.verify_seconds(4) == 3.0
    for _ in range(DRAFTS_REMEMBERED + 1):
        costs.verified(1, 0.017)
    assert costs.verify_seconds(4) == pytest.approx(0.017)
    assert costs.verify_seconds(1) == pytest.approx(0.017)


def test_runs_over_drafts_and_steps_of_rows_are_measured_apart() -> None:
    costs = verified({1: 0.017, 4: 0.03})
    assert costs.step_seconds(1) is None and not costs.knows(1)
    costs = learned({1: 0.017, 4: 0.03})
    assert costs.verify_seconds(1) is None
