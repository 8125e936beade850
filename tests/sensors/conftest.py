"""Machines that are not here, as trees of sysfs files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import pytest

from aiasst.sensors.reading import Place

Plant = Callable[..., Place]
RAPL = "sys/class/powercap"


@pytest.fixture
def plant(tmp_path_factory: pytest.TempPathFactory) -> Plant:
    """Write a tree and give the Place that sees it; a path with None instead of a text is a folder, which nobody can read."""

    def make(tree: Mapping[str, str | None], libraries: Mapping[str, ModuleType] | None = None) -> Place:
        root = tmp_path_factory.mktemp("machine")
        for path, text in tree.items():
            write(root, path, text)
        return Place(root, (libraries or {}).get)

    return make


def write(root: Path, path: str, text: str | None) -> None:
    file = root / path
    if text is None:
        file.mkdir(parents=True)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


def zone(name: str, of: str, joules: float, most: float = 262143.328850) -> dict[str, str]:
    """A RAPL zone: its folder, its name, its counter."""
    return {
        f"{RAPL}/{name}/name": of,
        f"{RAPL}/{name}/energy_uj": str(round(joules * 1e6)),
        f"{RAPL}/{name}/max_energy_range_uj": str(round(most * 1e6)),
    }


LAPTOP: dict[str, str | None] = {
    **zone("intel-rapl:0", "package-0", 1000.0),
    **zone("intel-rapl:0:0", "core", 600.0),
    **zone("intel-rapl:0:1", "uncore", 50.0),
    **zone("intel-rapl:0:2", "dram", 100.0),
    **zone("intel-rapl:1", "psys", 3000.0),
    **zone("intel-rapl-mmio:0", "package-0", 1000.0),
    f"{RAPL}/intel-rapl/enabled": "1",
    "sys/class/hwmon/hwmon0/name": "nvme",
    "sys/class/hwmon/hwmon0/temp1_input": "38850",
    "sys/class/hwmon/hwmon0/temp1_label": "Composite",
    "sys/class/hwmon/hwmon1/name": "coretemp",
    "sys/class/hwmon/hwmon1/temp1_input": "61000",
    "sys/class/hwmon/hwmon1/temp1_label": "Package id 0",
    "sys/class/hwmon/hwmon1/temp2_input": "64000",
    "sys/class/hwmon/hwmon1/temp2_label": "Core 0",
    "sys/class/hwmon/hwmon1/temp3_input": "-128000",
    "sys/class/hwmon/hwmon1/temp3_label": "Core 1",
    "sys/class/hwmon/hwmon1/temp4_input": "0",
    "sys/class/hwmon/hwmon1/temp4_fault": "1",
    "sys/class/thermal/thermal_zone0/type": "acpitz",
    "sys/class/thermal/thermal_zone0/temp": "27800",
    "sys/class/thermal/thermal_zone1/type": "x86_pkg_temp",
    "sys/class/thermal/thermal_zone1/temp": "62000",
    "sys/class/thermal/thermal_zone2/type": "iwlwifi_1",
    "sys/class/thermal/thermal_zone2/temp": None,
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "2400000",
    "sys/devices/system/cpu/cpufreq/policy0/cpuinfo_max_freq": "4800000",
    "sys/devices/system/cpu/cpufreq/policy1/scaling_cur_freq": "3600000",
    "sys/devices/system/cpu/cpufreq/policy1/cpuinfo_max_freq": "4800000",
    **{f"sys/devices/system/cpu/cpu{n}/thermal_throttle/core_throttle_count": str(n) for n in range(4)},
    **{f"sys/devices/system/cpu/cpu{n}/thermal_throttle/package_throttle_count": "7" for n in range(4)},
    **{f"sys/devices/system/cpu/cpu{n}/topology/physical_package_id": "0" for n in range(4)},
    "sys/class/power_supply/BAT0/type": "Battery",
    "sys/class/power_supply/BAT0/status": "Discharging",
    "sys/class/power_supply/BAT0/power_now": "14500000",
    "sys/class/power_supply/AC/type": "Mains",
    "sys/class/power_supply/hidpp_battery_0/type": "Battery",
    "sys/class/power_supply/hidpp_battery_0/scope": "Device",
    "sys/class/power_supply/hidpp_battery_0/status": "Discharging",
    "sys/class/power_supply/hidpp_battery_0/power_now": "1",
}

PI: dict[str, str | None] = {
    "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0",
    "sys/class/hwmon/hwmon0/name": "cpu_thermal",
    "sys/class/hwmon/hwmon0/temp1_input": "71400",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": "71400",
    "sys/devices/platform/soc/soc:firmware/get_throttled": "0x50005",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1500000",
    "sys/devices/system/cpu/cpufreq/policy0/cpuinfo_max_freq": "2400000",
}

JETSON: dict[str, str | None] = {
    "sys/class/hwmon/hwmon3/name": "ina3221",
    "sys/class/hwmon/hwmon3/in1_label": "VDD_IN",
    "sys/class/hwmon/hwmon3/in1_input": "4900",
    "sys/class/hwmon/hwmon3/curr1_input": "2000",
    "sys/class/hwmon/hwmon3/in2_label": "VDD_CPU_GPU_CV",
    "sys/class/hwmon/hwmon3/in2_input": "4900",
    "sys/class/hwmon/hwmon3/curr2_input": "400",
    "sys/class/hwmon/hwmon3/in3_label": "VDD_SOC",
    "sys/class/hwmon/hwmon3/curr3_input": "100",
    "sys/class/thermal/thermal_zone0/type": "CPU-therm",
    "sys/class/thermal/thermal_zone0/temp": "48500",
    "sys/class/thermal/thermal_zone1/type": "GPU-therm",
    "sys/class/thermal/thermal_zone1/temp": "59000",
}
