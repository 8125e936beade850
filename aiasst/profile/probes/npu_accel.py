"""NPUs that Linux' accel class shows: Intel, AMD, Rockchip, Qualcomm, Habana. Knows no GPU."""

from __future__ import annotations

from aiasst.artifacts.device import Accelerator
from aiasst.profile.host import Host, key_values

_DRIVERS = {
    "intel_vpu": "Intel NPU", "amdxdna": "AMD XDNA NPU", "rocket": "Rockchip NPU", "qaic": "Qualcomm Cloud AI",
    "habanalabs": "Intel Gaudi", "ethosu": "Arm Ethos-U NPU",
}  # fmt: skip


def probe(host: Host) -> list[Accelerator]:
    """One entry a device; [] where there are none."""
    found: list[Accelerator] = []
    for device in host.glob("/sys/class/accel/accel[0-9]*"):
        driver = key_values(host.text(f"{device}/device/uevent").replace("=", ":")).get("DRIVER", "")
        name = _DRIVERS.get(driver, "NPU")
        found.append(Accelerator(kind="npu", name=name, driver=driver or None))
    return found
