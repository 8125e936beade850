"""Laws of percentiles, speeds, shares and ratios."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiasst.artifacts.model_folder import Weight
from aiasst.bench.figures import (
    LEAST_STEPS,
    MOST_STEPS,
    Speed,
    bandwidth_share,
    bytes_per_token,
    overhead_share,
    paired_ratio,
    percentile,
    steady_speed,
    steps_within,
)

POSITIVE = st.floats(1e-6, 1e6)
LISTS = st.lists(POSITIVE, min_size=1, max_size=40)


@given(LISTS, st.floats(0, 1), st.floats(0, 1))
@settings(deadline=None)
def test_a_percentile_lies_among_the_values_and_rises(values: list[float], first: float, second: float) -> None:
    low, high = sorted((first, second))
    assert min(values) <= percentile(values, low) * (1 + 1e-9)
    assert percentile(values, low) <= percentile(values, high) * (1 + 1e-9)
    assert percentile(values, high) <= max(values) * (1 + 1e-9)


def test_percentiles_of_a_hundred() -> None:
    values = [float(value) for value in range(101)]
    assert percentile(values, 0.5) == 50
    assert percentile(values, 0.99) == 99


@given(LISTS)
@settings(deadline=None)
def test_a_speed_is_its_best_and_its_noise_a_share(samples: list[float]) -> None:
    speed = Speed.of(samples)
    assert speed.median <= speed.best == max(samples)
    assert 0 <= speed.noise < 1
    assert Speed.of(samples[::-1]) == speed


@given(LISTS, st.floats(0, 2))
@settings(deadline=None)
def test_overhead_is_a_share(walls: list[float], share: float) -> None:
    assert overhead_share(walls, [wall * share for wall in walls]) == pytest.approx(max(0, 1 - share), abs=1e-9)


@given(st.lists(POSITIVE, min_size=3, max_size=40), st.integers(1, 16), st.floats(1, 1e6))
@settings(deadline=None)
def test_a_stall_in_one_step_changes_little(steps: list[float], sequences: int, stall: float) -> None:
    speed = steady_speed(sequences, steps)
    assert sequences / max(steps) <= speed * (1 + 1e-9) and speed <= sequences / min(steps) * (1 + 1e-9)
    longest = steps.index(max(steps))
    assert steady_speed(sequences, [*steps[:longest], steps[longest] + stall, *steps[longest + 1 :]]) == speed


def test_bandwidth_is_bytes_a_token_times_tokens() -> None:
    assert bandwidth_share(500, 10, 10_000) == 0.5


@given(LISTS, POSITIVE, POSITIVE)
@settings(deadline=None)
def test_a_ratio_does_not_mind_slow_rounds(theirs: list[float], ratio: float, slow: float) -> None:
    ours = [ratio * speed for speed in theirs]
    assert paired_ratio(ours, theirs) == pytest.approx(ratio)
    assert paired_ratio([slow * speed for speed in ours], [slow * speed for speed in theirs]) == pytest.approx(ratio)


@given(st.floats(-10, 1e3), POSITIVE, st.floats(0, 1e3), st.integers(LEAST_STEPS, MOST_STEPS))
@settings(deadline=None)
def test_steps_keep_their_bounds(seconds: float, step: float, fixed: float, most: int) -> None:
    steps = steps_within(seconds, step, fixed, most)
    assert LEAST_STEPS <= steps <= most
    if steps > LEAST_STEPS:
        assert steps * step <= (seconds - fixed) * (1 + 1e-9)


@given(st.lists(st.tuples(POSITIVE, POSITIVE), min_size=1, max_size=20))
@settings(deadline=None)
def test_a_ratio_turned_round_is_one_over_it(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = zip(*pairs, strict=True)
    assert paired_ratio(ours, theirs) * paired_ratio(theirs, ours) == pytest.approx(1)


def weight(role: Any, size: int, shared_with: str | None = None) -> Weight:
    return Weight(role=role, layer=None, shape=(1,), format="fp32", bytes=size, shared_with=shared_with)


def test_an_embedding_counts_only_where_a_head_shares_it() -> None:
    layers = {"q": weight("q", 10), "norm": weight("norm", 1), "cos": weight("rotary", 1000)}
    apart = {"embed": weight("embed", 100), "head": weight("lm_head", 50), **layers}
    assert bytes_per_token(apart) == 61
    tied = {"embed": weight("embed", 100), "head": weight("lm_head", 0, "embed"), **layers}
    assert bytes_per_token(tied) == 111
