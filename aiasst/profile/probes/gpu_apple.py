"""The graphics units of a Mac, and the neural engine of an Apple chip. Knows no other system."""

from __future__ import annotations

import json
from typing import Any

from aiasst.artifacts.device import Accelerator
from aiasst.profile.host import Host


def probe(host: Host) -> list[Accelerator]:
    """By system_profiler; [] elsewhere."""
    if host.system != "Darwin":
        return []
    found = [Accelerator(kind="gpu", name=name) for name in _names(host)]
    if host.architecture == "aarch64":
        # Every Mac with an Apple chip has one; nothing lists it.
        found.append(Accelerator(kind="npu", name="Apple Neural Engine"))
    return found


def _names(host: Host) -> list[str]:
    try:
        listed: Any = json.loads(host.run(("system_profiler", "SPDisplaysDataType", "-json")) or "{}")
    except ValueError:
        return []
    displays = listed.get("SPDisplaysDataType", []) if isinstance(listed, dict) else []
    return [str(display["sppci_model"]) for display in displays if "sppci_model" in display]
