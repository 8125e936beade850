"""Phases put together: the largest peak, all of the time, and a refusal that names the one that needs most."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiasst.errors import BudgetRefused
from aiasst.quantize import phases
from aiasst.quantize.phases import Estimate, Moment, Phase, Speed

_NUMBERS = st.integers(0, 10**13)
_PHASES = st.lists(
    st.builds(Phase, st.just("proof"), _NUMBERS, _NUMBERS, st.floats(0, 1e16), st.floats(0, 1e16)), min_size=1
)


@given(_PHASES)
def test_memory_is_the_largest_peak_and_time_the_sum(parts: list[Phase]) -> None:
    whole = Estimate(tuple(parts))
    assert whole.memory == max(part.memory for part in parts)
    assert whole.disk == max(part.disk for part in parts)
    assert whole.seconds == pytest.approx(sum(Estimate((part,)).seconds for part in parts))


@given(_PHASES, _NUMBERS)
def test_a_ceiling_refuses_exactly_what_is_above_it(parts: list[Phase], ceiling: int) -> None:
    whole = Estimate(tuple(parts))
    whole.refuse(None)
    whole.refuse(whole.memory)
    if whole.memory <= ceiling:
        whole.refuse(ceiling)
        return
    with pytest.raises(BudgetRefused, match="of memory"):
        whole.refuse(ceiling)


def test_a_summary_tells_every_phase() -> None:
    speed = phases.machine()
    parts = (
        Phase("planning", 2_000_000_000, 10**9, runs=600 * speed.runs),
        Phase("calibration", 3_000_000_000, 2 * 10**9, runs=0, algebra=1800 * speed.algebra),
        Phase("proof", 10**9, 10**9, runs=30 * speed.runs),
    )
    assert Estimate(parts).summary == (
        "about 3.0 GB of memory, 2.0 GB of disk and 40 min: planning 10 min, calibration 30 min, proof 30 s"
    )
    assert re.fullmatch(r"about .* of memory, .* of disk and proof 30 s", Estimate(parts[2:]).summary)


def test_a_machine_has_a_speed_that_is_measured_once() -> None:
    assert isinstance(phases.machine(), Speed)
    assert phases.machine() is phases.machine()
    assert min(phases.machine().runs, phases.machine().algebra) > 1e6


_MOMENTS = st.lists(st.builds(Moment, st.floats(0, 1e12), st.floats(0, 1e12)), min_size=1)


@given(_MOMENTS, st.floats(0, 1e10), st.floats(0, 1e10))
def test_arrays_are_never_less_than_they_are(moments: list[Moment], lasting: float, passing: float) -> None:
    """The program counts, and the holes between small arrays."""
    alone, before = phases.peak([Moment(0)]), phases.peak(moments)
    assert before >= alone + max(moment.lasting + moment.passing for moment in moments) - 1
    first = moments[0]
    for more in (Moment(first.lasting + lasting, first.passing), Moment(first.lasting, first.passing + passing)):
        assert phases.peak([more, *moments[1:]]) >= before
        assert phases.peak([*moments, more]) >= before
    assert phases.peak([Moment(0)], torch=False) < alone
