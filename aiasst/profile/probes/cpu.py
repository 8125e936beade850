"""The CPU's name and the instruction sets that the kernels care about. Knows no core counts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from aiasst.profile.host import Host, key_values, sysctl, whole_number

# Name in /proc/cpuinfo → ours. x86 and ARM do not collide.
_LINUX = {
    **{name: name for name in (
        "avx", "avx2", "fma", "f16c", "avx_vnni", "avx_vnni_int8", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16",
        "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "i8mm", "bf16", "sve", "sve2", "sme", "sme2",
    )},
    "asimd": "neon", "neon": "neon", "asimddp": "dotprod", "asimdhp": "fp16",
}  # fmt: skip
_MACOS_ARM = {
    "FEAT_DotProd": "dotprod", "FEAT_I8MM": "i8mm", "FEAT_BF16": "bf16", "FEAT_FP16": "fp16",
    "FEAT_SME": "sme", "FEAT_SME2": "sme2",
}  # fmt: skip
_MACOS_X86 = {
    "AVX1.0": "avx", "AVX2": "avx2", "FMA": "fma", "F16C": "f16c", "AVX512F": "avx512f", "AVX512BW": "avx512bw",
    "AVX512VNNI": "avx512_vnni",
}  # fmt: skip
# Numbers of IsProcessorFeaturePresent (winnt.h). It does not tell VNNI or AMX.
_WINDOWS = {
    19: "neon", 39: "avx", 40: "avx2", 41: "avx512f", 43: "dotprod", 46: "sve", 47: "sve2", 66: "i8mm", 67: "fp16",
    68: "bf16", 70: "sme", 71: "sme2",
}  # fmt: skip

# CPU implementer → (maker, part → name), from the Arm "Main ID Register" part numbers that the kernel's cputype.h lists.
_ARM_PARTS: dict[int, tuple[str, dict[int, str]]] = {
    0x41: ("Arm", {
        0xD03: "Cortex-A53", 0xD04: "Cortex-A35", 0xD05: "Cortex-A55", 0xD07: "Cortex-A57", 0xD08: "Cortex-A72",
        0xD09: "Cortex-A73", 0xD0A: "Cortex-A75", 0xD0B: "Cortex-A76", 0xD0C: "Neoverse-N1", 0xD0D: "Cortex-A77",
        0xD40: "Neoverse-V1", 0xD41: "Cortex-A78", 0xD42: "Cortex-A78AE", 0xD44: "Cortex-X1", 0xD46: "Cortex-A510",
        0xD47: "Cortex-A710", 0xD48: "Cortex-X2", 0xD49: "Neoverse-N2", 0xD4D: "Cortex-A715", 0xD4E: "Cortex-X3",
        0xD4F: "Neoverse-V2", 0xD80: "Cortex-A520", 0xD81: "Cortex-A720", 0xD82: "Cortex-X4", 0xD83: "Neoverse-V3AE",
        0xD84: "Neoverse-V3", 0xD85: "Cortex-X925", 0xD87: "Cortex-A725", 0xD8E: "Neoverse-N3",
    }),
    0x51: ("Qualcomm", {0x001: "Oryon"}),
    0x61: ("Apple", {}),
    0x4E: ("NVIDIA", {0x004: "Carmel"}),
    0xC0: ("Ampere", {0xAC3: "Ampere-1", 0xAC4: "Ampere-1a"}),
}  # fmt: skip


@dataclass(frozen=True)
class Cpu:
    """What the CPU calls itself, and what it can."""

    model: str
    instruction_sets: tuple[str, ...]
    """Sorted."""


def probe(host: Host) -> Cpu:
    """Name and instruction sets, from /proc/cpuinfo, sysctl or the system's library."""
    if host.system == "Linux":
        return _from_cpuinfo(host)
    if facts := sysctl(host):
        model = facts.get("machdep.cpu.brand_string") or facts.get("hw.model", "unknown")
        return Cpu(model, _known(_macos_names(facts)))
    return Cpu(host.library().cpu_model, _known(_WINDOWS[n] for n in _WINDOWS if host.has_feature(n)))


def _from_cpuinfo(host: Host) -> Cpu:
    text = host.text("/proc/cpuinfo")
    facts = key_values(text)
    flags = facts.get("flags") or facts.get("Features") or ""
    model = facts.get("model name") or _arm_name(host, text) or facts.get("cpu model") or host.architecture
    return Cpu(model, _known(_LINUX[flag] for flag in flags.split() if flag in _LINUX))


def _arm_name(host: Host, cpuinfo: str) -> str:
    """Core names by their part numbers, and the board's name: "Cortex-A76 + Cortex-A55 (Orange Pi 5)"."""
    cores: list[str] = []
    maker = ""
    for line in cpuinfo.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "CPU implementer":
            maker = value
        elif key == "CPU part":
            cores.append(_part_name(maker, value))
    names = " + ".join(sorted({core for core in cores if core}, reverse=True))
    board = host.line("/proc/device-tree/model") or key_values(cpuinfo).get("Model", "")
    return f"{names} ({board})" if names and board else names or board


def _part_name(maker: str, part: str) -> str:
    try:
        maker_name, parts = _ARM_PARTS.get(int(maker, 16), (f"ARM implementer {maker}", {}))
        return parts.get(int(part, 16), f"{maker_name} part {part}")
    except ValueError:
        return ""


def _macos_names(facts: dict[str, str]) -> list[str]:
    words = f"{facts.get('machdep.cpu.features', '')} {facts.get('machdep.cpu.leaf7_features', '')}".split()
    names = [_MACOS_X86[word] for word in words if word in _MACOS_X86]
    names += [ours for theirs, ours in _MACOS_ARM.items() if whole_number(facts.get(f"hw.optional.arm.{theirs}", ""))]
    if any(whole_number(facts.get(key, "")) for key in ("hw.optional.neon", "hw.optional.AdvSIMD")):
        names.append("neon")
    return names


def _known(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(names)))
