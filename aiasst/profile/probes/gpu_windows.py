"""The graphics units that Windows lists. Knows no other system."""

from __future__ import annotations

import json
from typing import Any

from aiasst.artifacts.device import Accelerator
from aiasst.profile.host import Host

_QUERY = "Get-CimInstance Win32_VideoController | Select-Object Name, DriverVersion | ConvertTo-Json"
# Not a graphics unit: what Windows shows without a driver, and remote desktops.
_VIRTUAL = ("Microsoft Basic", "Microsoft Remote", "Microsoft Hyper-V")


def probe(host: Host) -> list[Accelerator]:
    """By PowerShell; [] elsewhere. NVIDIA's are left to gpu_nvidia where nvidia-smi is.

    The memory that this class tells is wrong above 4 GB (32 bits), so it is left out.
    """
    if host.system != "Windows":
        return []
    try:
        listed: Any = json.loads(host.run(("powershell", "-NoProfile", "-Command", _QUERY)) or "[]")
    except ValueError:
        return []
    # PowerShell writes one object without a list around it.
    rows = listed if isinstance(listed, list) else [listed]
    found = [(str(row.get("Name", "")), row.get("DriverVersion")) for row in rows if isinstance(row, dict)]
    return [
        Accelerator(kind="gpu", name=name, driver=str(driver) if driver else None)
        for name, driver in found
        if name and not name.startswith((*_VIRTUAL, "NVIDIA"))
    ]
