"""Every source on trees of sysfs files: values in SI units, and a reason for what is missing."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from aiasst.sensors import Found, Place, find
from aiasst.sensors.reading import installed
from aiasst.sensors.sources import names
from tests.sensors.conftest import JETSON, LAPTOP, PI, RAPL, Plant, zone


def values(found: Found, source: str) -> dict[str, float | None]:
    return {f"{s.kind} {s.name}": s.read() for s in found.sensors if s.source == source}


def test_rapl_names_parts_by_their_package_and_leaves_doubles_out(plant: Plant) -> None:
    found = values(find(plant(LAPTOP)), "rapl")
    assert found == {
        "energy package-0": 1000.0,
        "energy package-0/core": 600.0,
        "energy package-0/uncore": 50.0,
        "energy package-0/dram": 100.0,
        "energy psys": 3000.0,
    }


def test_registers_mapped_into_memory_count_where_there_are_no_others(plant: Plant) -> None:
    assert values(find(plant(zone("intel-rapl-mmio:0", "package-0", 5.0))), "rapl") == {"energy package-0": 5.0}


def test_chips_and_zones_by_their_labels(plant: Plant) -> None:
    found = find(plant(LAPTOP))
    assert values(found, "hwmon") == {
        "temperature nvme Composite": 38.85,
        "temperature coretemp Package id 0": 61.0,
        "temperature coretemp Core 0": 64.0,
        "temperature coretemp Core 1": -128.0,
    }
    assert values(found, "thermal_zones") == {"temperature acpitz": 27.8, "temperature x86_pkg_temp": 62.0}
    (missing,) = (one for one in found.missing if one.source == "thermal_zones")
    assert missing.name == "iwlwifi_1"
    assert "cannot be read" in missing.reason


def test_zones_of_one_type_are_numbered(plant: Plant) -> None:
    tree = {f"sys/class/thermal/thermal_zone{n}/type": "acpitz" for n in range(2)}
    tree |= {f"sys/class/thermal/thermal_zone{n}/temp": f"{n + 30}000" for n in range(2)}
    assert values(find(plant(tree)), "thermal_zones") == {"temperature acpitz 0": 30.0, "temperature acpitz 1": 31.0}


def test_clocks_and_throttling(plant: Plant) -> None:
    found = find(plant(LAPTOP))
    assert values(found, "cpufreq") == {"frequency policy0": 2.4e9, "frequency policy1": 3.6e9}
    assert {sensor.most for sensor in found.of("frequency")} == {4.8e9}
    # Cores count each for itself, and the four tell one package's count.
    assert values(found, "throttling") == {"throttle events cores": 6.0, "throttle events packages": 7.0}


def test_power_kept_as_an_average_counts_once(plant: Plant) -> None:
    chip = "sys/class/hwmon/hwmon0"
    tree = {
        f"{chip}/name": "x",
        f"{chip}/power1_average": "1000000",
        f"{chip}/power1_input": "2000000",
        f"{chip}/power2_average": "3000000",
    }
    assert values(find(plant(tree)), "hwmon") == {"power x power1": 2.0, "power x power2": 3.0}


def test_power_of_rails_is_current_times_voltage(plant: Plant) -> None:
    found = find(plant(JETSON))
    rails = values(found, "hwmon")
    assert rails == pytest.approx({"power ina3221 VDD_IN": 9.8, "power ina3221 VDD_CPU_GPU_CV": 1.96})
    (missing,) = (one for one in found.missing if one.source == "hwmon")
    assert missing.name == "ina3221 VDD_SOC" and "in3_input cannot be read" in missing.reason


def test_a_battery_tells_while_it_discharges(plant: Plant) -> None:
    place = plant(LAPTOP)
    found = find(place)
    assert values(found, "battery") == {"power BAT0": 14.5}
    (place.root / "sys/class/power_supply/BAT0/status").write_text("Charging\n")
    assert values(found, "battery") == {"power BAT0": None}
    again = find(place)
    assert not values(again, "battery")
    assert "BAT0 is charging" in again.why_not("battery")


def test_a_battery_with_current_and_voltage(plant: Plant) -> None:
    folder = "sys/class/power_supply/axp20x-battery"
    tree = {f"{folder}/type": "Battery", f"{folder}/status": "Discharging"}
    flows = {f"{folder}/current_now": "-1500000", f"{folder}/voltage_now": "4000000"}
    assert values(find(plant(tree | flows)), "battery") == {"power axp20x-battery": 6.0}
    assert "neither its power nor its current" in find(plant(tree)).why_not("battery")


@pytest.mark.parametrize(
    ("bits", "low", "throttled", "events"),
    [("0x0", 0, 0, 0), ("50005", 1, 1, 1), ("0xf0008", 0, 1, 3), ("0x10000", 0, 0, 0)],
)
def test_flags_of_the_raspberry(plant: Plant, bits: str, low: int, throttled: int, events: int) -> None:
    tree = PI | {"sys/devices/platform/soc/soc:firmware/get_throttled": bits}
    assert values(find(plant(tree)), "raspberry") == {
        "under-voltage supply": low,
        "throttled clock": throttled,
        "throttle events since the start": events,
    }


def test_a_raspberry_with_the_alarm_alone_and_one_without(plant: Plant) -> None:
    alarm = {"sys/class/hwmon/hwmon1/name": "rpi_volt", "sys/class/hwmon/hwmon1/in0_lcrit_alarm": "1"}
    assert values(find(plant(alarm)), "raspberry") == {"under-voltage rpi_volt": 1.0}
    bare = find(plant({"proc/device-tree/model": "Raspberry Pi 4 Model B"}))
    assert "does not show the firmware's flags" in bare.why_not("raspberry")


def test_an_empty_machine_says_why_for_every_source(plant: Plant) -> None:
    found = find(plant({}))
    assert found.sensors == ()
    assert {missing.source for missing in found.missing} == set(names())
    assert all(missing.reason for missing in found.missing)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may read everything")
def test_a_counter_for_root_alone_is_a_reason(plant: Plant) -> None:
    place = plant(zone("intel-rapl:0", "package-0", 1.0))
    (place.root / RAPL / "intel-rapl:0/energy_uj").chmod(0o000)
    _refused(find(place))


def test_a_refused_permission_is_a_reason(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for whoever tests as root: the system's answer instead of its doing."""
    read = Path.read_text

    def refuse(self: Path, *args: str, **options: str) -> str:
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(self))
        return read(self, *args, **options)

    monkeypatch.setattr(Path, "read_text", refuse)
    _refused(find(plant(zone("intel-rapl:0", "package-0", 1.0))))


def _refused(found: Found) -> None:
    assert not found.of("energy")
    (missing,) = (one for one in found.missing if one.source == "rapl")
    assert missing.name == "package-0"
    assert "may not be read by this user" in missing.reason
    assert "intel-rapl:0/energy_uj" in missing.reason


def test_files_that_hold_no_number(plant: Plant) -> None:
    found = find(plant(zone("intel-rapl:0", "package-0", 1.0) | {f"{RAPL}/intel-rapl:0/energy_uj": "n/a"}))
    assert "holds no number: 'n/a'" in found.why_not("rapl")


@pytest.mark.parametrize("garbage", ["", "\0\0", "nan", "-", "9" * 5000, "\ufffd", "1 2 3"])
def test_damaged_files_are_no_error(plant: Plant, garbage: str) -> None:
    found = find(plant({path: garbage for path, text in (LAPTOP | PI).items() if text is not None}))
    assert all(sensor.read() is not None for sensor in found.sensors)
    assert all(missing.reason for missing in found.missing)


class Nvml(ModuleType):
    """The names of nvidia-ml-py that are used, for two cards of which the second is old."""

    class NVMLError(Exception):
        """As the library's own."""

    def __init__(self, *, answers: bool = True) -> None:
        super().__init__("pynvml")
        self._answers = answers

    def nvmlInit(self) -> None:  # noqa: N802 - the library's name
        if not self._answers:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, number: int) -> int:  # noqa: N802
        return number

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
        if handle:
            raise self.NVMLError("Not Supported")
        return 5_000_000

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:  # noqa: N802
        return 70_000 + handle

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:  # noqa: N802
        assert sensor == 0
        return 55

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: int) -> int:  # noqa: N802
        return 0x40 if handle else 0x1


def test_graphics_processors_by_their_library(plant: Plant) -> None:
    found = find(plant({}, {"pynvml": Nvml()}))
    assert values(found, "nvidia") == {
        "energy gpu0": 5000.0,
        "power gpu0": 70.0,
        "temperature gpu0": 55.0,
        "throttled gpu0": 0.0,
        "power gpu1": 70.001,
        "temperature gpu1": 55.0,
        "throttled gpu1": 1.0,
    }
    assert found.why_not("nvidia") == "gpu1 does not tell its energy"
    silent = find(plant({}, {"pynvml": Nvml(answers=False)}))
    assert "Driver Not Loaded" in silent.why_not("nvidia")


def test_this_machine_is_asked_without_an_error() -> None:
    found = find()
    assert {one.source for one in (*found.sensors, *found.missing)} == set(names())
    assert installed("math") is not None and installed("no_such_package") is None
    assert Place(Path("/nowhere"), lambda _: None).trouble("a").startswith("/a cannot be read")
