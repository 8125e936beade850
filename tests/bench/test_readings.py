"""Energy, heat and clocks around samples, on a machine of files that change in the meantime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from aiasst.bench.figures import energy_per_token
from aiasst.bench.readings import Instruments
from aiasst.bench.work import Sample
from aiasst.sensors import Place

CPU = "sys/devices/system/cpu"
BEFORE = {
    "sys/class/powercap/intel-rapl:0/name": "package-0",
    "sys/class/powercap/intel-rapl:0/energy_uj": "1000000",
    "sys/class/hwmon/hwmon0/name": "k10temp",
    "sys/class/hwmon/hwmon0/temp1_label": "Tctl",
    "sys/class/hwmon/hwmon0/temp1_input": "45000",
    f"{CPU}/cpufreq/policy0/scaling_cur_freq": "4000000",
    f"{CPU}/cpufreq/policy1/scaling_cur_freq": "3000000",
    f"{CPU}/cpu0/thermal_throttle/core_throttle_count": "5",
    "sys/devices/platform/soc/soc:firmware/get_throttled": "0x0",
}
AFTER = {
    "sys/class/powercap/intel-rapl:0/energy_uj": "9000000",
    "sys/class/hwmon/hwmon0/temp1_input": "82500",
    f"{CPU}/cpufreq/policy0/scaling_cur_freq": "2000000",
    f"{CPU}/cpu0/thermal_throttle/core_throttle_count": "8",
    "sys/devices/platform/soc/soc:firmware/get_throttled": "0x1",
}


def plant(root: Path, tree: Mapping[str, str]) -> Place:
    for path, text in tree.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    return Place(root, lambda _: None)


def sample(tokens: int, joules: float | None) -> Sample:
    return Sample(tokens, (1.0,), (0.9,), joules)


def test_everything_that_the_machine_tells(tmp_path: Path) -> None:
    instruments = Instruments(plant(tmp_path, BEFORE))
    assert instruments.joules() == 0
    instruments.begin()
    plant(tmp_path, AFTER)
    assert instruments.joules() == 8.0
    found = instruments.end([sample(100, 2.0)], {1: [sample(8, 4.0), sample(8, 8.0)], 4: [sample(32, 8.0)]})
    assert found.energy.prefill == 0.02
    assert found.energy.decode == {1: 0.75, 4: 0.25}
    assert found.energy.reason == "" and "RAPL" in found.energy.scope
    heat, clock = found.temperature_celsius, found.frequency_hertz
    assert (heat.before, heat.after, heat.reason) == (45.0, 82.5, "")
    assert (clock.before, clock.after) == (3.5e9, 2.5e9)
    assert (found.throttling.events, found.throttling.flags, found.throttling.seen) == (3, ("under-voltage",), True)


def test_nothing_is_told_with_its_reason(tmp_path: Path) -> None:
    instruments = Instruments(plant(tmp_path, {}))
    instruments.begin()
    found = instruments.end([sample(100, instruments.joules())], {1: [sample(8, None)]})
    assert (found.energy.prefill, found.energy.decode) == (None, {1: None})
    assert "powercap" in found.energy.reason
    for change in (found.temperature_celsius, found.frequency_hertz):
        assert (change.before, change.after) == (None, None) and change.reason
    assert found.throttling.seen is None and found.throttling.reason


def test_a_counter_that_stands_still_counts_nothing(tmp_path: Path) -> None:
    found = Instruments(plant(tmp_path, BEFORE)).end([sample(100, 0.0)], {1: [sample(8, 0.0)]})
    assert found.energy.prefill is None
    assert found.energy.reason == "the energy counter stands still"
    assert found.throttling.seen is False


@pytest.mark.parametrize(
    ("samples", "expected"),
    [([sample(10, 1.0), sample(30, 3.0)], 0.1), ([sample(10, None), sample(10, 2.0)], 0.2), ([sample(10, 0.0)], None)],
)
def test_joules_a_token_over_all_samples(samples: list[Sample], expected: float | None) -> None:
    assert energy_per_token(samples) == expected
