"""A limit of the device config through a whole job: the machine is hot at first, and cools down while the engine waits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aiasst import sensors
from aiasst.artifacts.device import LimitDecision
from aiasst.artifacts.shipped import default_model
from aiasst.engine import pacing
from aiasst.engine.requests import Sampling
from aiasst.profile import quick_config
from aiasst.run import run
from aiasst.sensors import Found, Place, Sensor


def test_a_hot_machine_is_given_time_to_cool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([90.0] * 4)

    def cooling(_: Place | None) -> Found:
        return Found((Sensor("thermal_zones", "temperature", "cpu-thermal", lambda: next(readings, 40.0)),))

    monkeypatch.setattr(sensors, "find", cooling)
    # A fast machine writes the whole answer in less than what is looked at together.
    monkeypatch.setattr(pacing, "LOOK_SECONDS", 0.01)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "Once upon a time", "max_tokens": 60}) + "\n")
    limit = LimitDecision(value=80.0, reason="a test")
    found = quick_config()
    config = found.model_copy(
        update={"decisions": found.decisions.model_copy(update={"temperature_limit_celsius": limit})}
    )
    summary = run(
        default_model(), prompts, tmp_path / "answers.jsonl", config=config, sampling=Sampling(temperature=0, seed=1)
    )
    assert (summary.rows, summary.errors) == (1, 0)
    assert 0 < summary.paced_seconds < summary.seconds
