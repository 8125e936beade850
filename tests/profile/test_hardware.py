"""The probes on machines that are not here: what they find, and that absence is no error."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import pytest

from aiasst.artifacts.device import Hardware
from aiasst.profile import probes
from aiasst.profile.hardware import read_hardware
from aiasst.profile.host import Host, LibraryFacts, cpu_list, key_values, run_command, this_host
from aiasst.profile.probes import accelerators, sensors


def read(host: Host) -> Hardware:
    return read_hardware(host, thorough=False)


def caches(hardware: Hardware) -> set[tuple[int, str, int, int]]:
    return {(cache.level, cache.kind, cache.bytes, cache.instances) for cache in hardware.caches}


def test_raspberry_pi(raspberry: Host) -> None:
    hardware = read(raspberry)
    assert hardware.cpu_model == "Cortex-A76 (Raspberry Pi 5 Model B Rev 1.0)"
    # What run and chat ask at every start looks for no sensor.
    assert hardware.sensors == ()
    assert hardware.instruction_sets == ("dotprod", "fp16", "neon")
    assert (hardware.physical_cores, hardware.logical_cores, hardware.usable_cores) == (4, 4, 4.0)
    assert [group.kind for group in hardware.core_groups] == ["performance"]
    assert caches(hardware) == {
        (1, "data", 4 * 64 * 1024, 4),
        (1, "instruction", 4 * 64 * 1024, 4),
        (2, "unified", 4 * 512 * 1024, 4),
        (3, "unified", 2048 * 1024, 1),
    }
    assert hardware.memory_total_bytes == hardware.memory_limit_bytes == 8255488 * 1024
    assert [(a.kind, a.name, a.driver) for a in accelerators(raspberry)] == [("gpu", "Broadcom VideoCore", "v3d")]


def test_readings_that_are_there_and_missing(plant) -> None:
    host = plant(
        {
            "/sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
            "/sys/class/thermal/thermal_zone0/temp": "51000\n",
            "/sys/class/powercap/intel-rapl:0/name": "package-0\n",
            "/sys/class/powercap/intel-rapl:0/energy_uj": "not a number\n",
        }
    )
    found = sensors.probe(host)
    there = [(sensor.source, sensor.kind, sensor.name, sensor.reason) for sensor in found if sensor.available]
    assert there == [("thermal_zones", "temperature", "cpu-thermal", "")]
    missing = {sensor.source: sensor for sensor in found if not sensor.available}
    assert missing["rapl"].name == "package-0"
    assert "holds no number" in missing["rapl"].reason
    assert {"battery", "cpufreq", "hwmon", "nvidia", "raspberry", "throttling"} <= set(missing)


def test_server_with_amx_and_two_nodes(amx_server: Host) -> None:
    hardware = read(amx_server)
    assert {"amx_int8", "amx_bf16", "avx512_vnni", "avx512_bf16", "avx_vnni"} <= set(hardware.instruction_sets)
    assert (hardware.physical_cores, hardware.logical_cores) == (16, 32)
    assert hardware.core_groups[0].cpus == tuple(range(16))
    assert (3, "unified", 2 * 107520 * 1024, 2) in caches(hardware)
    assert [len(node.cpus) for node in hardware.numa] == [16, 16]
    assert hardware.numa[1].memory_bytes == 64 * 2**30
    cards = accelerators(amx_server)
    assert [(card.name, card.memory_bytes, card.driver) for card in cards] == [
        ("NVIDIA L4", 23034 * 2**20, "nvidia 550.54.15")
    ]


def test_nvidia_without_its_tool(plant) -> None:
    host = plant({"/proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA GeForce RTX 4090\n"})
    assert [card.name for card in accelerators(host)] == ["NVIDIA GeForce RTX 4090"]


def test_hybrid_laptop(hybrid_laptop: Host) -> None:
    hardware = read(hybrid_laptop)
    performance, efficiency = hardware.core_groups
    assert (performance.kind, performance.physical_cores, performance.cpus) == ("performance", 6, (0, 2, 4, 6, 8, 10))
    assert (efficiency.kind, efficiency.physical_cores, efficiency.cpus) == ("efficiency", 8, tuple(range(12, 20)))
    assert {(1, "data", 6 * 49152 + 8 * 32768, 14), (2, "unified", 8 * 2048 * 1024, 8)} <= caches(hardware)
    assert (3, "unified", 24576 * 1024, 1) in caches(hardware)
    assert {(a.kind, a.name) for a in accelerators(hybrid_laptop)} == {("gpu", "Intel GPU 7d55"), ("npu", "Intel NPU")}


def test_big_little_by_capacity(raspberry: Host) -> None:
    for cpu, capacity in enumerate((400, 400, 1024, 870)):
        (raspberry.root / f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity").write_text(f"{capacity}\n")
    assert [(g.kind, g.cpus) for g in read(raspberry).core_groups] == [("performance", (2, 3)), ("efficiency", (0, 1))]


def test_container_of_version_1(container_v1: Host) -> None:
    hardware = read(container_v1)
    assert (hardware.cpu_quota, hardware.usable_cores) == (0.5, 0.5)
    assert hardware.memory_limit_bytes == 512 * 2**20
    assert hardware.memory_free_bytes == 412 * 2**20  # page cache that can be dropped counts as free
    assert hardware.memory_total_bytes == 64 * 2**30


def test_container_of_version_2_is_bound_by_its_ancestors(container_v2: Host) -> None:
    hardware = read(container_v2)
    assert (hardware.cpu_quota, hardware.usable_cores) == (1.5, 1.5)
    assert hardware.core_groups[0].cpus == tuple(range(2, 10))
    assert hardware.memory_limit_bytes == 4 * 2**30
    assert hardware.memory_free_bytes == 3 * 2**30


@pytest.mark.parametrize(
    ("membership", "mounts"),
    [
        ("", ""),
        ("0::/../../elsewhere\n", "30 23 0:26 /deep/group /sys/fs/cgroup rw - cgroup2 cgroup rw\n"),
        ("nonsense\n::\n0::/gone\n", "short line\n30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n"),
        ("4:memory:/\n", "30 23 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"),
    ],
)
def test_no_limit_where_no_group_sets_one(plant, membership: str, mounts: str) -> None:
    tree = {
        "/proc/cpuinfo": "model name : X\nflags : avx2\n",
        "/proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 900 kB\n",
        "/sys/devices/system/cpu/cpu0/topology/thread_siblings_list": "0\n",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    if membership:
        tree |= {"/proc/self/cgroup": membership, "/proc/self/mountinfo": mounts}
    hardware = read(plant(tree))
    assert (hardware.cpu_quota, hardware.memory_limit_bytes) == (None, 1000 * 1024)
    assert hardware.memory_free_bytes == 900 * 1024


def test_affinity_counts(amx_server: Host) -> None:
    from dataclasses import replace

    hardware = read(replace(amx_server, affinity=frozenset({0, 16, 3})))
    assert hardware.usable_cores == 3.0
    assert hardware.core_groups[0].cpus == (0, 3)
    assert (hardware.physical_cores, hardware.logical_cores) == (16, 32)


def test_apple_chip(mac: Host) -> None:
    hardware = read(mac)
    assert hardware.cpu_model == "Apple M2"
    assert {"neon", "dotprod", "i8mm", "bf16"} == set(hardware.instruction_sets)
    assert [(g.kind, g.physical_cores, g.cpus) for g in hardware.core_groups] == [
        ("performance", 4, ()),
        ("efficiency", 4, ()),
    ]
    assert (2, "unified", 20 * 2**20, 2) in caches(hardware)
    assert (hardware.memory_total_bytes, hardware.memory_free_bytes) == (2**34, 9000000000)
    assert [(a.kind, a.name) for a in accelerators(mac)] == [("gpu", "Apple M2"), ("npu", "Apple Neural Engine")]


def test_intel_mac(intel_mac: Host) -> None:
    hardware = read(intel_mac)
    assert hardware.instruction_sets == ("avx", "avx2", "f16c", "fma")
    assert (hardware.physical_cores, hardware.logical_cores, hardware.usable_cores) == (6, 12, 12.0)
    assert (3, "unified", 12582912, 1) in caches(hardware)


def test_windows(windows: Host) -> None:
    hardware = read(windows)
    assert (hardware.cpu_model, hardware.physical_cores, hardware.logical_cores) == ("AMD Ryzen 7 7840U", 8, 16)
    assert hardware.instruction_sets == ("avx", "avx2", "avx512f")
    assert [(a.name, a.driver) for a in accelerators(windows)] == [("AMD Radeon 780M", "31.0")]


@pytest.mark.parametrize("system", ["Linux", "Darwin", "Windows", "FreeBSD"])
def test_an_empty_machine_is_no_error(plant, system: str) -> None:
    host = plant({}, system=system, library=lambda: LibraryFacts("", 1, 1, 2**30, 2**29))
    hardware = read(host)
    assert hardware.physical_cores == hardware.logical_cores == 1
    assert (hardware.caches, hardware.numa, accelerators(host)) == ((), (), ())


@pytest.mark.parametrize("garbage", ["\x00\xff garbage", "", "{]", "a: b: c\n0-0-0,x\n"])
def test_damaged_files_and_answers_are_no_error(plant, garbage: str) -> None:
    places = (
        "/proc/cpuinfo", "/proc/meminfo", "/proc/self/cgroup", "/proc/self/mountinfo", "/sys/devices/system/cpu/online",
        "/sys/devices/system/cpu/cpu0/topology/thread_siblings_list", "/sys/devices/system/cpu/cpu0/cache/index0/size",
        "/sys/devices/system/cpu/cpu0/cache/index0/level", "/sys/devices/system/node/node0/cpulist",
        "/sys/class/drm/card0/device/uevent", "/sys/class/accel/accel0/device/uevent", "/sys/devices/cpu_atom/cpus",
    )  # fmt: skip
    commands = dict.fromkeys(("nvidia-smi", "sysctl", "system_profiler", "powershell"), garbage)
    for system in ("Linux", "Darwin", "Windows"):
        host = plant(
            dict.fromkeys(places, garbage),
            system=system,
            commands=commands,
            library=lambda: LibraryFacts("cpu", 2, 4, 2**30, 2**29),
        )
        assert read(host).physical_cores >= 1
        accelerators(host)


def test_this_machine() -> None:
    hardware = read_hardware(this_host())
    assert 1 <= hardware.physical_cores <= hardware.logical_cores
    assert 0 < hardware.usable_cores <= hardware.logical_cores
    assert 0 < hardware.memory_free_bytes <= hardware.memory_limit_bytes <= hardware.memory_total_bytes
    assert hardware.instruction_sets
    assert "cpu" in {provider.name for provider in hardware.providers if provider.available}
    assert hardware.machine_id == read(this_host()).machine_id


def test_every_probe_file_has_its_name() -> None:
    names = [module.name for module in pkgutil.iter_modules(probes.__path__)]
    assert {"cpu", "cores", "limits", "gpu_nvidia", "npu_accel"} <= set(names)
    for name in names:
        assert callable(importlib.import_module(f"{probes.__name__}.{name}").probe)


def test_commands_that_fail_give_nothing(tmp_path: Path) -> None:
    assert run_command(["no-such-command-anywhere"]) == ""
    assert run_command(["false"]) == ""


def test_small_readers() -> None:
    assert cpu_list("0-2,8\n") == (0, 1, 2, 8)
    assert cpu_list("") == cpu_list("x-3") == ()
    assert key_values("a: 1\na: 2\nb\n") == {"a": "1"}
