"""GPUs that Linux' Direct Rendering Manager shows: AMD, Intel, and those of ARM boards. Leaves NVIDIA's driver to gpu_nvidia."""

from __future__ import annotations

from aiasst.artifacts.device import Accelerator
from aiasst.profile.host import Host, key_values

_VENDORS = {"0x1002": "AMD GPU", "0x8086": "Intel GPU", "0x10de": "NVIDIA GPU", "0x13b5": "Arm GPU"}
# Drivers of graphics units that are not PCI devices: on the same chip as the CPU.
_ON_CHIP = {
    "v3d": "Broadcom VideoCore", "panfrost": "Arm Mali", "panthor": "Arm Mali", "lima": "Arm Mali", "mali": "Arm Mali",
    "msm": "Qualcomm Adreno", "msm_dpu": "Qualcomm Adreno", "etnaviv": "Vivante", "asahi": "Apple GPU",
    "powervr": "PowerVR", "tegra-gpu": "NVIDIA Tegra", "gk20a": "NVIDIA Tegra",
}  # fmt: skip
_NPUS = {"rknpu": "Rockchip NPU"}


def probe(host: Host) -> list[Accelerator]:
    """One entry a card with a known driver or maker; displays without a renderer and virtual cards are left out."""
    found: list[Accelerator] = []
    for card in host.glob("/sys/class/drm/card[0-9]*"):
        # card0-HDMI-A-1 is a connector.
        if "-" in card.rsplit("/", 1)[1]:
            continue
        driver = _uevent(host, f"{card}/device").get("DRIVER", "").lower()
        if driver != "nvidia" and (accelerator := _card(host, card, driver)):
            found.append(accelerator)
    return found


def _card(host: Host, card: str, driver: str) -> Accelerator | None:
    if driver in _NPUS:
        return Accelerator(kind="npu", name=_NPUS[driver], driver=driver)
    name = _ON_CHIP.get(driver) or _VENDORS.get(host.line(f"{card}/device/vendor"))
    if name is None:
        return None
    device = host.line(f"{card}/device/device").removeprefix("0x")
    return Accelerator(
        kind="gpu",
        name=f"{name} {device}".strip(),
        memory_bytes=host.number(f"{card}/device/mem_info_vram_total"),
        driver=driver or None,
    )


def _uevent(host: Host, device: str) -> dict[str, str]:
    return key_values(host.text(f"{device}/uevent").replace("=", ":"))
