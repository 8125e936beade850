"""What is here: one file a kind, each with `probe(host)`, which never raises and gives [], () or None for what is absent.

cpu, cores, caches, numa, memory, limits, providers and sensors are asked by name, each for its own part of Hardware; the files
gpu_*.py and npu_*.py are found by their names and give the accelerators that they know.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Protocol, cast

from aiasst.artifacts.device import Accelerator
from aiasst.profile.host import Host


class AcceleratorProbe(Protocol):
    """The name that a file gpu_*.py or npu_*.py has."""

    def probe(self, host: Host) -> list[Accelerator]:
        """The accelerators of its kind; [] where there are none."""


def accelerator_probes() -> tuple[str, ...]:
    """Names of the files that look for accelerators, sorted."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(name for name in names if name.startswith(("gpu_", "npu_"))))


def accelerators(host: Host) -> tuple[Accelerator, ...]:
    """All that any of them finds."""
    found: list[Accelerator] = []
    for name in accelerator_probes():
        module = cast(AcceleratorProbe, importlib.import_module(f"{__name__}.{name}"))
        found += module.probe(host)
    return tuple(found)
