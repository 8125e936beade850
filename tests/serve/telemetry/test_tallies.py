import bisect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiasst.serve.telemetry.tallies import BOUNDS, EVERY_SECONDS, LONGEST_SECONDS, NOBODY, Spread, Tallies


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.floats(0.0001, 59.0), min_size=1, max_size=60), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(values: list[float], share: float) -> None:
    spread = Spread()
    for value in values:
        spread.add(value)
    true = sorted(values)[max(0, -int(-share * len(values) // 1) - 1)]
    bucket = bisect.bisect_left(BOUNDS, true)
    lower = BOUNDS[bucket - 1] if bucket else 0.0
    told = spread.quantile(share)
    assert told is not None
    assert lower <= told <= BOUNDS[bucket]


def test_a_spread_of_nothing_has_no_quantile_and_what_is_beyond_all_bounds_has_the_last() -> None:
    spread = Spread()
    assert spread.quantile(0.5) is None
    spread.add(3600.0)
    assert spread.quantile(0.5) == BOUNDS[-1] == 60.0
    assert spread.count == 1


def test_the_last_minute_is_what_came_during_it() -> None:
    clock = Clock()
    tallies = Tallies(["m"], clock)
    for _ in range(600):  # two minutes, five a second
        tallies.of("m").begun += 1
        clock.now += 0.2
    lately = tallies.lately("m", 60.0)
    assert lately.rate(lately.tally.begun) == pytest.approx(5.0, rel=0.02)
    assert lately.seconds == pytest.approx(60.0, abs=EVERY_SECONDS)


def test_what_came_before_a_silence_is_not_of_the_last_minute() -> None:
    clock = Clock()
    tallies = Tallies(["m"], clock)
    for _ in range(50):
        tallies.of("m").ended += 1
        clock.now += 0.1
    clock.now += 1000.0
    assert tallies.lately("m", 60.0).tally.ended == 0
    tallies.of("m").ended += 1
    clock.now += 1.0
    lately = tallies.lately("m", 60.0)
    assert lately.tally.ended == 1
    assert lately.seconds == pytest.approx(60.0, abs=EVERY_SECONDS)


@given(st.lists(st.floats(0.0, 40.0), max_size=80), st.floats(5.0, LONGEST_SECONDS))
def test_nothing_counts_that_is_older_than_asked_for_by_more_than_the_distance(
    gaps: list[float], window: float
) -> None:
    clock = Clock()
    tallies, times = Tallies(["m"], clock), []
    for gap in gaps:
        clock.now += gap
        tallies.of("m").begun += 1
        times.append(clock.now)
    counted = tallies.lately("m", window).tally.begun
    assert counted <= sum(time >= clock.now - window for time in times)
    assert counted >= sum(time > clock.now - window + EVERY_SECONDS + 1e-6 for time in times)


def test_memory_is_bounded_and_strangers_share_one_tally() -> None:
    clock = Clock()
    tallies = Tallies(["m"], clock)
    for number in range(3000):
        tallies.of(f"stranger {number}").refused += 1
        clock.now += 1.0
    assert [name for name, _ in tallies] == ["m", NOBODY]
    assert len(tallies._kept) <= LONGEST_SECONDS / EVERY_SECONDS + 3
