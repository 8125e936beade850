"""Which sensors speak for a machine: no joule twice, and the processor's heat, not the disk's."""

from __future__ import annotations

import pytest

from aiasst.sensors import chosen, find
from tests.sensors.conftest import JETSON, LAPTOP, PI, Plant, zone
from tests.sensors.test_sources import Nvml


def test_packages_and_their_memory_are_the_energy_and_nothing_twice(plant: Plant) -> None:
    found = chosen.energy(find(plant(LAPTOP)))
    assert [sensor.name for sensor in found.sensors] == ["package-0", "package-0/dram"]
    assert found.total() == 1100.0
    assert "RAPL" in found.scope


def test_the_board_before_the_battery(plant: Plant) -> None:
    found = chosen.energy(find(plant(JETSON)))
    assert [sensor.name for sensor in found.sensors] == ["ina3221 VDD_IN"]
    assert found.total() == pytest.approx(9.8)
    battery = {path: text for path, text in LAPTOP.items() if "power_supply" in path}
    assert chosen.energy(find(plant(battery))).total() == 14.5


def test_graphics_processors_count_where_they_work(plant: Plant) -> None:
    found = find(plant(zone("intel-rapl:0", "package-0", 1.0), {"pynvml": Nvml()}))
    assert len(chosen.energy(found).sensors) == 1
    cards = chosen.energy(found, gpu=True).sensors[1:]
    assert [(card.name, card.kind) for card in cards] == [("gpu0", "energy"), ("gpu1", "power")]


def test_nothing_has_a_reason(plant: Plant) -> None:
    found = find(plant({}))
    energy = chosen.energy(found)
    assert (energy.sensors, energy.scope, energy.total()) == ((), "", None)
    assert "powercap" in energy.reason and "battery" in energy.reason
    assert "thermal zone" in chosen.temperature(found).reason
    assert chosen.temperature(found).highest() is None
    assert "frequency policy" in chosen.clock(found).reason
    assert "does not count" in chosen.throttling(found).reason


def test_the_hottest_sensor_of_the_processor(plant: Plant) -> None:
    heat = chosen.temperature(find(plant(LAPTOP)))
    # Not the disk's, and not the one that is not connected.
    assert [sensor.name for sensor in heat.sensors] == ["coretemp Package id 0", "coretemp Core 0"]
    assert heat.highest() == 64.0
    assert chosen.temperature(find(plant(PI))).highest() == 71.4
    assert chosen.temperature(find(plant(JETSON))).highest() == 48.5


def test_the_mainboard_where_no_sensor_is_the_processors(plant: Plant) -> None:
    tree = {"sys/class/thermal/thermal_zone0/type": "acpitz", "sys/class/thermal/thermal_zone0/temp": "40000"}
    heat = chosen.temperature(find(plant(tree)))
    assert (heat.highest(), heat.scope) == (40.0, "the mainboard, by ACPI")
    disk = {"sys/class/hwmon/hwmon0/name": "nvme", "sys/class/hwmon/hwmon0/temp1_input": "40000"}
    alone = chosen.temperature(find(plant(disk)))
    assert alone.sensors == () and alone.reason


def test_clocks_and_events(plant: Plant) -> None:
    found = find(plant(LAPTOP))
    assert chosen.clock(found).readings() == [2.4e9, 3.6e9]
    assert chosen.throttling(found).total() == 13.0
