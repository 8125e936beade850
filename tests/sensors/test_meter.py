"""Laws of the meter: counters come round, power is energy over time, and nothing is counted twice or lost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiasst.sensors import Sensor, chosen, find
from aiasst.sensors.meter import EnergyMeter, counted
from tests.sensors.conftest import Plant, write, zone

MOST = 262143.328850


@given(st.floats(0, MOST), st.floats(0, MOST - 1))
@settings(deadline=None)
def test_a_counter_that_comes_round_counts_on(start: float, spent: float) -> None:
    after = start + spent
    wrapped = after - MOST if after > MOST else after
    assert counted(start, wrapped, MOST) == pytest.approx(spent, abs=1e-6)


def test_a_counter_without_an_end_that_falls_was_set_back() -> None:
    assert counted(5.0, 1.0, None) == 0.0
    assert counted(1.0, 5.0, None) == 4.0


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=30))
@settings(deadline=None)
def test_many_readings_add_up_to_one(steps: list[float]) -> None:
    total = 0.0

    def read() -> float:
        return total % MOST

    meter = EnergyMeter([Sensor("x", "energy", "x", read, MOST)])
    for step in steps:
        total += step
        meter.joules()
    assert meter.joules() == pytest.approx(sum(steps), abs=1e-6)


def test_power_is_energy_over_time() -> None:
    times: Iterator[float] = iter([0.0, 2.0, 5.0])
    watts: Iterator[float | None] = iter([10.0, 20.0, 20.0])
    meter = EnergyMeter([Sensor("x", "power", "x", lambda: next(watts))], lambda: next(times))
    assert meter.joules() == 30.0
    assert meter.joules() == 90.0


def test_a_reading_that_is_lost_comes_in_with_the_next() -> None:
    values: Iterator[float | None] = iter([1.0, None, 4.0])
    meter = EnergyMeter([Sensor("x", "energy", "x", lambda: next(values))])
    assert meter.joules() == 0.0
    assert meter.joules() == 3.0


def test_no_sensor_no_joule() -> None:
    assert EnergyMeter([]).joules() is None
    assert EnergyMeter([Sensor("x", "power", "x", lambda: None)]).joules() is None


def test_a_tree_whose_counters_move(plant: Plant) -> None:
    place = plant(zone("intel-rapl:0", "package-0", MOST - 1) | zone("intel-rapl:0:0", "dram", 10.0))
    meter = EnergyMeter(chosen.energy(find(place)).sensors)
    for path, text in (zone("intel-rapl:0", "package-0", 4.0) | zone("intel-rapl:0:0", "dram", 12.0)).items():
        write(place.root, path, text)
    assert meter.joules() == pytest.approx(5.0 + 2.0, abs=1e-5)
