"""Laws of pacing, on a machine that is simulated: it warms up while work goes on, and its joules are counted."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiasst.engine.pacing import (
    BAND,
    BURST_SECONDS,
    LEAST_DUTY,
    LOOK_SECONDS,
    SLICE_SECONDS,
    Governor,
    Limits,
    Pacer,
    duty,
)


@dataclass
class Machine:
    """A body that approaches `hot` degrees while it works and `idle` degrees while it does not, with a time constant."""

    idle: float
    hot: float
    constant: float
    idle_watts: float = 5.0
    busy_watts: float = 30.0
    now: float = 0.0
    joules: float = 0.0
    highest: float = -math.inf
    busy: float = 0.0

    def __post_init__(self) -> None:
        self.celsius = self.idle

    def work(self, seconds: float) -> None:
        self._pass(seconds, self.hot, self.busy_watts)
        self.busy += seconds

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self._pass(seconds, self.idle, self.idle_watts)

    def _pass(self, seconds: float, target: float, watts: float) -> None:
        self.now += seconds
        self.joules += watts * seconds
        self.celsius = target + (self.celsius - target) * math.exp(-seconds / self.constant)
        self.highest = max(self.highest, self.celsius)

    def pacer(self, limits: Limits) -> Pacer:
        return Pacer(
            limits,
            temperature=lambda: self.celsius,
            joules=lambda: self.joules,
            clock=lambda: self.now,
            sleep=self.sleep,
        )

    def run(self, limits: Limits, *, step: float, seconds: float) -> Pacer:
        pacer = self.pacer(limits)
        while self.now < seconds:
            while pacer.resting():
                pass
            self.work(step)
            pacer.worked(step)
        return pacer


STEPS = st.floats(0.03, 1.0)
CONSTANTS = st.floats(3.0, 60.0)


@given(hot=st.floats(60, 140), constant=CONSTANTS, step=STEPS, limit=st.floats(55, 95))
@settings(deadline=None, max_examples=25)
def test_the_limit_is_kept_but_for_one_stretch_of_work(hot: float, constant: float, step: float, limit: float) -> None:
    idle = 35.0
    machine = Machine(idle, hot, constant)
    machine.run(Limits(temperature_celsius=limit), step=step, seconds=3 * constant)
    # Between two readings work goes on for LOOK_SECONDS and the step that is under way.
    stretch = (hot - idle) * (1 - math.exp(-(LOOK_SECONDS + step) / constant))
    # At the limit work has LEAST_DUTY, which by itself may not be too much for the cooler.
    if idle + LEAST_DUTY * (hot - idle) < limit:
        assert machine.highest <= limit + stretch


@given(hot=st.floats(40, 70), constant=CONSTANTS, step=STEPS)
@settings(deadline=None, max_examples=20)
def test_a_cool_machine_is_never_paused(hot: float, constant: float, step: float) -> None:
    machine = Machine(30.0, hot, constant)
    pacer = machine.run(Limits(temperature_celsius=hot + BAND, power_watts=40.0), step=step, seconds=30)
    assert pacer.paced_seconds == 0
    assert machine.busy == pytest.approx(machine.now)


@given(idle=st.floats(60, 120), step=STEPS)
@settings(deadline=None, max_examples=20)
def test_nothing_starves_whatever_others_do(idle: float, step: float) -> None:
    machine = Machine(idle, idle + 20, 10.0, idle_watts=100.0, busy_watts=200.0)
    machine.run(Limits(temperature_celsius=50.0, power_watts=10.0), step=step, seconds=100)
    stretch = LOOK_SECONDS + step
    assert machine.busy >= LEAST_DUTY * (machine.now - stretch) - stretch


@given(budget=st.floats(8, 28), step=STEPS, idle=st.floats(1, 5))
@settings(deadline=None, max_examples=25)
def test_the_power_budget_is_kept_on_average(budget: float, step: float, idle: float) -> None:
    machine = Machine(30.0, 60.0, 10.0, idle_watts=idle)
    pacer = machine.run(Limits(power_watts=budget), step=step, seconds=60)
    stretch = LOOK_SECONDS + step
    allowed = budget * (machine.now + BURST_SECONDS) + 30.0 * stretch
    # LEAST_DUTY is kept before the budget is.
    if idle + LEAST_DUTY * (30.0 - idle) < budget:
        assert machine.joules <= allowed
        # Nor is much of it left unused: pauses end within a slice of what is needed.
        assert machine.joules >= budget * machine.now - budget * (SLICE_SECONDS + stretch) - 30.0 * stretch
    assert pacer.paced_seconds > 0


@given(st.floats(-20, 150), st.floats(-20, 150), st.floats(30, 110))
def test_hotter_is_never_faster(first: float, second: float, limit: float) -> None:
    cool, hot = sorted((first, second))
    assert LEAST_DUTY <= duty(hot, limit) <= duty(cool, limit) <= 1
    assert duty(limit - BAND - 0.01, limit) == 1
    assert duty(limit, limit) == LEAST_DUTY


def test_a_pause_ends_when_the_machine_is_cool() -> None:
    machine = Machine(30.0, 100.0, 0.2)
    machine.celsius = 90.0
    pacer = machine.pacer(Limits(temperature_celsius=60.0))
    pacer.worked(1.0)
    while pacer.resting():
        pass
    # A twentieth of the time would be 19 seconds; with a time constant of 0.2 s it is cool long before.
    assert 0 < pacer.paced_seconds <= 4 * SLICE_SECONDS
    assert machine.celsius < 60.0


def test_a_short_burst_is_let_through() -> None:
    machine = Machine(30.0, 60.0, 10.0)
    pacer = machine.run(Limits(power_watts=20.0), step=0.1, seconds=0.9)
    assert pacer.paced_seconds == 0


def test_readings_that_fail_leave_the_last_ones() -> None:
    governor = Governor(Limits(temperature_celsius=60.0, power_watts=10.0))
    assert governor.pause(1.0, 0.0, now=0.0, temperature=None, joules=None) == 0
    assert governor.pause(1.0, 0.0, now=0.0, temperature=70.0, joules=None) == pytest.approx(19)
    assert governor.pause(1.0, 0.0, now=1.0, temperature=None, joules=None) == pytest.approx(19)
    assert governor.pause(1.0, 19.0, now=2.0, temperature=None, joules=None) == 0
    assert governor.pause(1.0, 0.0, now=3.0, temperature=40.0, joules=None) == 0


def test_short_steps_are_read_together() -> None:
    asked: list[float] = []

    def read() -> float:
        asked.append(1.0)
        return 20.0

    pacer = Pacer(Limits(temperature_celsius=60.0), temperature=read, joules=lambda: None)
    for _ in range(50):
        pacer.worked(LOOK_SECONDS / 10)
        assert not pacer.resting()
    assert 4 <= len(asked) <= 6
