"""The library of devices: every file is sound and sourced, stands for a machine to decide for, and is found by its name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from aiasst.errors import ArtifactError
from aiasst.profile import library
from aiasst.profile.decide import decide
from aiasst.profile.library import DeviceDescription
from tests.profile.golden import GOLDEN, golden_of

NAMES = library.names()
WANTED = (
    "raspberry-pi-4", "raspberry-pi-5", "orange-pi-5", "jetson-orin-nano", "n100", "nuc-", "ryzen", "core-ultra",
    "mac-mini-m1", "mac-mini-m2", "mac-mini-m4", "snapdragon-x", "steam-deck", "epyc", "amx", "rtx-3060", "rtx-4060",
    "rtx-4090",
)  # fmt: skip
# What /proc/cpuinfo, sysctl and Windows may tell (probes/cpu.py).
KNOWN = {
    "avx", "avx2", "fma", "f16c", "avx_vnni", "avx_vnni_int8", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16",
    "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "neon", "fp16", "dotprod", "i8mm", "bf16", "sve", "sve2", "sme",
    "sme2",
}  # fmt: skip


def test_there_are_enough_of_all_kinds() -> None:
    assert len(NAMES) >= 24
    for part in WANTED:
        assert any(part in name for name in NAMES), part
    assert {library.describe(name).kind for name in NAMES} == {
        "board", "mini PC", "laptop", "desktop", "server", "handheld"
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_description_is_sound(name: str) -> None:
    path = Path(library.__file__).parent / "devices" / f"{name}.json"
    device = DeviceDescription.parse(json.loads(path.read_text()), name)
    assert device == library.describe(name)
    assert name == name.lower()
    assert device.sources
    assert set(device.instruction_sets) <= KNOWN
    assert list(device.instruction_sets) == sorted(device.instruction_sets)
    assert ("neon" in device.instruction_sets) == (device.architecture == "aarch64")
    assert ("avx2" in device.instruction_sets) == (device.architecture == "x86_64")
    assert device.cores[0].kind == "performance"
    assert 1 <= device.cores[0].gigahertz < 6
    assert sum(cores.kind == "efficiency" for cores in device.cores) <= 1


@pytest.mark.parametrize("name", NAMES)
def test_bandwidth_is_what_the_type_of_memory_gives(name: str) -> None:
    """Millions of transfers a second, times the bytes of one."""
    memory = library.describe(name).memory
    found = re.fullmatch(r"(?:LP)?DDR\d\w?(?:-(\d+))?, (?:(\d+) bit|(one|two|eight|twelve) channels?)", memory.type)
    assert found, memory.type
    if found[1] is None:
        return  # the maker tells the bandwidth alone
    bits = int(found[2]) if found[2] else 64 * {"one": 1, "two": 2, "eight": 8, "twelve": 12}[found[3]]
    assert memory.gigabytes_per_second == pytest.approx(int(found[1]) * bits / 8 / 1000, rel=0.025)


@pytest.mark.parametrize("name", NAMES)
def test_a_description_stands_for_a_machine(name: str) -> None:
    device = library.describe(name)
    hardware = library.hardware_of(device)
    decisions = decide(hardware)
    assert decisions.threads.value == device.working.count
    assert hardware.memory_free_bytes < hardware.memory_total_bytes
    assert decisions.memory_ceiling_bytes.value < hardware.memory_free_bytes
    assert decisions.provider.value == "cpu"
    assert (decisions.affinity.value is not None) == (len(device.cores) > 1 and device.system == "Linux")
    assert bool(hardware.accelerators) == (device.graphics is not None)
    assert type(hardware).parse(json.loads(hardware.to_json()), name) == hardware


@pytest.mark.parametrize("name", NAMES)
def test_decisions_and_predictions_are_the_golden_ones(name: str) -> None:
    """A change here is a change of what people are told: look at it, then `python -m tests.profile.golden`."""
    golden = json.loads(GOLDEN.read_text())
    assert golden_of(name) == golden[name]


def test_every_golden_device_is_in_the_library() -> None:
    assert sorted(json.loads(GOLDEN.read_text())) == sorted(NAMES)


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("raspberry pi 5", "raspberry-pi-5-8gb"), ("rasberry-pi-5-8gb", "raspberry-pi-5-8gb"), ("RTX_4090", "desktop-rtx-4090"),
        ("m4", "mac-mini-m4-16gb"),
    ],
)  # fmt: skip
def test_an_unknown_name_says_which_are_meant(asked: str, meant: str) -> None:
    with pytest.raises(ArtifactError, match="no device") as refusal:
        library.describe(asked)
    assert meant in refusal.value.hint
    assert "--devices" in refusal.value.hint


def test_a_name_like_nothing_only_says_where_all_are() -> None:
    with pytest.raises(ArtifactError) as refusal:
        library.describe("zzzzzz")
    assert "perhaps" not in refusal.value.hint
    with pytest.raises(ArtifactError):
        library.describe("")
    with pytest.raises(ArtifactError):
        library.describe("../devices/epyc-9554")


def test_every_key_is_documented() -> None:
    documentation = (Path(__file__).parents[2] / "docs" / "advise.md").read_text()
    nested = {
        "": DeviceDescription, "sources[].": library.PublicSource, "cores[].": library.CoreKind, "memory.": library.Memory,
        "graphics.": library.GraphicsCard,
    }  # fmt: skip
    for prefix, part in nested.items():
        for key in part.model_fields:
            assert f"`{prefix}{key}" in documentation, f"{prefix}{key}"
