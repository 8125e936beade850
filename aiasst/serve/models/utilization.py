"""How busy the machine is, as one number: 0.3 CPU + 0.2 memory + 0.5 waiting for disks. Knows no request.

Waiting for disks weighs most, because a machine that swaps answers nobody. A busy CPU alone is no reason to hold work back:
computing is what the service is for, and it comes to 0.3 at most.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import psutil

CPU_SHARE, MEMORY_SHARE, DISK_SHARE = 0.3, 0.2, 0.5


@dataclass(frozen=True)
class Load:
    """Shares of the whole machine since the look before, 0 to 1 each."""

    cpu: float = 0.0
    memory: float = 0.0
    waiting_for_disk: float = 0.0
    """Of the time of all cores; 0 where the system does not tell."""

    @property
    def utilization(self) -> float:
        """The one number, 0 to 1."""
        return CPU_SHARE * self.cpu + MEMORY_SHARE * self.memory + DISK_SHARE * self.waiting_for_disk


def look() -> Load:
    """The machine since the last call; the first one tells no CPU."""
    times = psutil.cpu_times_percent(interval=None)
    waiting = getattr(times, "iowait", 0.0) / 100
    idle = times.idle / 100
    return Load(
        cpu=max(0.0, min(1.0, 1 - idle - waiting)),
        memory=psutil.virtual_memory().percent / 100,
        waiting_for_disk=waiting,
    )


class Utilization:
    """The load as it was looked at last."""

    def __init__(self, look: Callable[[], Load] = look) -> None:
        """`look` gives the load since it was called last."""
        self._look = look
        self.load = Load()

    def sample(self) -> float:
        """Look again; the new utilization."""
        self.load = self._look()
        return self.load.utilization

    def value(self) -> float:
        """The utilization of the last look, 0 to 1."""
        return self.load.utilization
