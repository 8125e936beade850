"""What of a device config is obeyed on a machine that has changed, and which steps are far from what it lets expect."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiasst.artifacts.device import CoreGroup, CoresDecision, Costs, CountDecision, DeviceConfig, Hardware
from aiasst.profile.decide import ModelNeeds, decide
from aiasst.profile.drift import FAR, drift
from aiasst.profile.obey import obeyed
from aiasst.profile.ranges import Range

GIB = 2**30
NEEDS = ModelNeeds("tiny", 10**6, 1000, 512)


def machine(cores: int = 8, free: float = 10, **changes: Any) -> Hardware:
    values: dict[str, Any] = {
        "machine_id": "this",
        "system": "Linux",
        "architecture": "x86_64",
        "cpu_model": "cpu",
        "physical_cores": 8,
        "logical_cores": 8,
        "usable_cores": float(cores),
        "core_groups": (CoreGroup(kind="performance", physical_cores=cores, cpus=tuple(range(cores))),),
        "instruction_sets": (),
        "caches": (),
        "memory_total_bytes": 16 * GIB,
        "memory_limit_bytes": 16 * GIB,
        "memory_free_bytes": int(free * GIB),
    }
    return Hardware.model_validate(values | changes)


def written(hardware: Hardware, **decisions: Any) -> DeviceConfig:
    return DeviceConfig(
        aiasst_version="0",
        onnxruntime_version="0",
        created="2026-11-21T00:00:00+00:00",
        hardware=hardware,
        costs=Costs(),
        decisions=decide(hardware).model_copy(update=decisions),
    )


def refuse() -> DeviceConfig:
    raise AssertionError("nothing is decided anew on the same machine")


def test_of_what_an_encoder_has_no_use_for_nothing_is_said() -> None:
    encoder = ModelNeeds("embedder", 10**6, 0, 512)
    (line,) = obeyed(written(machine()), machine(free=1), refuse, encoder).remarks
    assert line == "device config of 2026-11-21: 8 threads"


def test_an_unchanged_machine_obeys_all_and_says_so_in_a_line() -> None:
    config = written(machine(), slots=CountDecision(value=5, reason="mine"))
    found = obeyed(config, machine(), refuse, NEEDS)
    assert found.config is config
    (line,) = found.remarks
    assert "8 threads" in line and "5 sequences at once" in line and "2026-11-21" in line


def test_another_machine_gets_safe_values_and_a_warning() -> None:
    safe = written(machine(2))
    found = obeyed(written(machine(machine_id="other", cpu_model="Big Iron")), machine(2), lambda: safe, NEEDS)
    assert found.config is safe
    warning, line = found.remarks
    assert "another machine" in warning and "Big Iron" in warning and "not obeyed" in warning
    assert "2 threads" in line


def test_fewer_cores_lower_the_threads_and_what_they_are_pinned_to() -> None:
    config = written(machine(), affinity=CoresDecision(value=tuple(range(8)), reason="mine"))
    found = obeyed(config, machine(2), refuse, NEEDS)
    assert found.config.decisions.threads.value == 2
    assert found.config.decisions.affinity.value is None
    assert "2 threads instead of 8" in found.remarks[0]
    assert found.config.decisions.slots == config.decisions.slots


def test_a_quota_lowers_the_threads() -> None:
    limited = machine(usable_cores=1.0, cpu_quota=1.0)
    found = obeyed(written(machine()), limited, refuse, NEEDS)
    assert found.config.decisions.threads.value == 1


def test_more_cores_are_said_and_the_rest_is_obeyed() -> None:
    config = written(machine(2))
    found = obeyed(config, machine(8), refuse, NEEDS)
    assert found.config is config
    assert "8 cores may be used now, 2 when" in found.remarks[0]


def test_threads_that_were_edited_on_this_machine_are_obeyed() -> None:
    config = written(machine(), threads=CountDecision(value=12, reason="mine"))
    assert obeyed(config, machine(), refuse, NEEDS).config.decisions.threads.value == 12


def test_less_memory_lowers_the_ceiling() -> None:
    found = obeyed(written(machine()), machine(free=2), refuse, NEEDS)
    assert found.config.decisions.memory_ceiling_bytes.value == decide(machine(free=2)).memory_ceiling_bytes.value
    assert "free now" in found.remarks[0]


@given(st.integers(1, 8), st.integers(1, 8), st.floats(0.5, 15), st.floats(0.5, 15))
def test_what_is_obeyed_is_always_safe(before: int, now: int, had: float, free: float) -> None:
    here = machine(now, free)
    decisions = obeyed(written(machine(before, had)), here, refuse, NEEDS).config.decisions
    assert decisions.threads.value <= max(1, now)
    assert decisions.memory_ceiling_bytes.value <= here.memory_free_bytes


def expect(rows: int) -> Range | None:
    return Range(0.010, 0.012, 0.020) if rows <= 8 else None


@pytest.mark.parametrize("seconds", [0.010, 0.020, 0.020 * FAR * 0.99, 0.010 / FAR * 1.01])
def test_steps_near_the_prediction_say_nothing(seconds: float) -> None:
    assert drift(expect, [(1, seconds)]) == ""


def test_steps_far_from_it_are_told() -> None:
    slow = drift(expect, [(1, 0.011), (8, 0.050)])
    assert "slower" in slow and "8 sequences takes 50.0 ms, 10.0 to 20.0 ms" in slow
    assert "faster" in drift(expect, [(1, 0.001)])


def test_what_is_not_predicted_is_not_compared() -> None:
    assert drift(expect, [(16, 9.0)]) == ""
    assert drift(expect, []) == ""
