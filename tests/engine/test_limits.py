"""The limits of a device config: a pacer on the sensors that there are, or a refusal that says what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiasst.artifacts.device import Decisions, LimitDecision
from aiasst.engine import limits
from aiasst.engine.engine import Engine, Request, Sampling
from aiasst.engine.limits import pacer_for
from aiasst.engine.pacing import Limits, Pacer
from aiasst.errors import ResourceError
from aiasst.profile import quick_config
from aiasst.sensors import Place
from tests.engine.fakes import FakeDecoder

ZONE = "sys/class/thermal/thermal_zone0"
RAPL = "sys/class/powercap/intel-rapl:0"


def asking(temperature: float | None = None, power: float | None = None) -> Decisions:
    wanted = {
        "temperature_limit_celsius": LimitDecision(value=temperature, reason="a test"),
        "power_limit_watts": LimitDecision(value=power, reason="a test"),
    }
    return quick_config().decisions.model_copy(update=wanted)


def machine(root: Path, **files: str) -> Place:
    for path, text in files.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return Place(root, lambda _: None)


def test_without_a_limit_no_sensor_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits.sensors, "find", lambda _: pytest.fail("looked for sensors"))
    assert pacer_for(asking()) is None


@pytest.mark.parametrize(
    ("decisions", "words", "hint"),
    [
        (
            asking(temperature=75),
            "limit of 75 °C, which cannot be kept here: .*thermal zone",
            "temperature_limit_celsius",
        ),
        (asking(power=15), "limit of 15 W, which cannot be kept here: .*powercap", "power_limit_watts"),
    ],
)
def test_a_limit_that_nothing_here_can_keep_is_refused(
    tmp_path: Path, decisions: Decisions, words: str, hint: str
) -> None:
    with pytest.raises(ResourceError, match=words) as caught:
        pacer_for(decisions, machine(tmp_path))
    assert f"decisions.{hint}.value to null" in caught.value.hint


def test_a_pacer_reads_the_machines_sensors(tmp_path: Path) -> None:
    files = {
        f"{ZONE}/type": "cpu-thermal",
        f"{ZONE}/temp": "80000",
        f"{RAPL}/name": "package-0",
        f"{RAPL}/energy_uj": "1000000",
    }
    pacer = pacer_for(asking(75, 15), machine(tmp_path, **files))
    assert pacer is not None
    assert pacer.limits == Limits(75, 15)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        (tmp_path / ZONE / "temp").write_text("50000")

    pacer._sleep = sleep
    pacer.worked(0.2)
    assert pacer.resting()
    assert not pacer.resting()
    assert len(slept) == 1


def test_the_engine_pauses_between_steps_and_says_how_long() -> None:
    now, heat = 0.0, 100.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    pacer = Pacer(
        Limits(temperature_celsius=60.0), temperature=lambda: heat, joules=lambda: None, clock=lambda: now, sleep=sleep
    )

    def clock() -> float:
        """Every look at it takes a quarter of a second."""
        nonlocal now
        now += 0.25
        return now

    def tokens(engine: Engine) -> list[int | None]:
        engine.submit(Request("a", (1, 2, 3), Sampling(temperature=0, max_tokens=6)))
        found = []
        while engine.busy:
            found += [event.token for event in engine.step()]
        return found

    engine = Engine(FakeDecoder(), slots=1, clock=clock, pacer=pacer)
    assert tokens(engine) == tokens(Engine(FakeDecoder(), slots=1))
    assert engine.stats.paced_seconds == pacer.paced_seconds > 10
    assert Engine(FakeDecoder(), slots=1).stats.paced_seconds == 0


def test_a_deadline_passes_while_the_engine_rests() -> None:
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    pacer = Pacer(
        Limits(temperature_celsius=60.0), temperature=lambda: 100.0, joules=lambda: None, clock=lambda: now, sleep=sleep
    )
    engine = Engine(FakeDecoder(), slots=1, clock=lambda: now, pacer=pacer)
    engine.submit(Request("a", (1, 2, 3), Sampling(temperature=0, max_tokens=6), deadline_seconds=3.0))
    assert engine.step()[0].token is not None
    pacer.worked(1.0)
    ended: list[str | None] = []
    while engine.busy:
        ended += [event.finished for event in engine.step()]
    # A rest of nineteen seconds, of which only three passed.
    assert ended == ["deadline"]
    assert 3.0 <= now < 4.0


def test_phases_of_a_step_are_told_in_their_order() -> None:
    phases: list[str] = []
    engine = Engine(FakeDecoder(), slots=1, on_phase=phases.append)
    engine.submit(Request("a", (1, 2, 3), Sampling(temperature=0, max_tokens=2)))
    while engine.busy:
        engine.step()
    assert phases == ["admit", "feed", "sample", ""] * 2
