"""The ways in which a probe may ask the host: files below a root, commands, and what Python's libraries tell.

One object, so that a probe runs on a tree of fixtures as it runs on the machine. Knows no probe and nothing about hardware.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

CommandFn = Callable[[Sequence[str]], str]
FeatureFn = Callable[[int], bool]

_COMMAND_SECONDS = 10.0
_ARCHITECTURES = {"amd64": "x86_64", "x86_64": "x86_64", "arm64": "aarch64", "aarch64": "aarch64"}


@dataclass(frozen=True)
class LibraryFacts:
    """What psutil and the system's own interface tell, for where there is no /proc."""

    cpu_model: str
    physical_cores: int
    logical_cores: int
    memory_total_bytes: int
    memory_free_bytes: int


@dataclass(frozen=True)
class Host:
    """Where probes look."""

    root: Path
    system: str
    """Linux, Darwin or Windows."""
    architecture: str
    """x86_64, aarch64, or what the system calls it."""
    affinity: frozenset[int] | None
    """Logical cores that this process may run on; None where the system does not tell."""
    run: CommandFn
    """Output of a command; empty where it is absent, fails or takes too long."""
    library: Callable[[], LibraryFacts]
    has_feature: FeatureFn
    """Windows' IsProcessorFeaturePresent; never true elsewhere."""

    def text(self, path: str) -> str:
        """The text of a file below the root; empty where it cannot be read."""
        try:
            return (self.root / path.lstrip("/")).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def line(self, path: str) -> str:
        """The text of a file of one line, without its end."""
        return self.text(path).strip().strip("\0")

    def number(self, path: str) -> int | None:
        """The number in a file of one line; None where there is none."""
        return whole_number(self.line(path))

    def glob(self, pattern: str) -> list[str]:
        """Paths below the root that match, in the order of their numbers (cpu2 before cpu10)."""
        try:
            found = [path.relative_to(self.root).as_posix() for path in self.root.glob(pattern.lstrip("/"))]
        except OSError:
            return []
        return sorted(found, key=lambda path: (len(path), path))


def this_host() -> Host:
    """The machine that this process runs on."""
    return Host(
        root=Path("/"),
        system=platform.system(),
        architecture=_ARCHITECTURES.get(platform.machine().lower(), platform.machine()),
        affinity=_affinity(),
        run=run_command,
        library=_library_facts,
        has_feature=_windows_feature,
    )


def run_command(command: Sequence[str]) -> str:
    """Standard output of `command`; empty where it is absent, fails, or takes more than ten seconds."""
    try:
        ended = subprocess.run(
            list(command), capture_output=True, text=True, errors="replace", timeout=_COMMAND_SECONDS, check=True
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return ""
    return ended.stdout


def whole_number(text: str) -> int | None:
    """`text` as a whole number, or None."""
    try:
        return int(text)
    except ValueError:
        return None


def cpu_list(text: str) -> tuple[int, ...]:
    """The kernel's list format: "0-2,8" → (0, 1, 2, 8); empty where it is not one."""
    numbers: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        low, high = whole_number(first), whole_number(last or first)
        if low is None or high is None:
            return ()
        numbers.update(range(low, high + 1))
    return tuple(sorted(numbers))


def key_values(text: str) -> dict[str, str]:
    """Lines `key: value` (as of sysctl, /proc/meminfo, one block of /proc/cpuinfo); the first of a key counts."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            found.setdefault(key.strip(), value.strip())
    return found


def sysctl(host: Host) -> dict[str, str]:
    """MacOS' own facts about the hardware: hw.* and machdep.cpu.*; empty elsewhere."""
    return key_values(host.run(("sysctl", "hw", "machdep.cpu"))) if host.system == "Darwin" else {}


def _affinity() -> frozenset[int] | None:
    if not hasattr(os, "sched_getaffinity"):
        return None
    try:
        return frozenset(os.sched_getaffinity(0))
    except OSError:
        return None


def _library_facts() -> LibraryFacts:
    import psutil

    memory = psutil.virtual_memory()
    logical = psutil.cpu_count(logical=True) or os.cpu_count() or 1
    return LibraryFacts(
        cpu_model=_registry_cpu_model() or platform.processor() or platform.machine(),
        physical_cores=psutil.cpu_count(logical=False) or logical,
        logical_cores=logical,
        memory_total_bytes=memory.total,
        memory_free_bytes=memory.available,
    )


def _registry_cpu_model() -> str:
    """The CPU's own name: platform.processor() gives Windows' family and stepping numbers instead."""
    if sys.platform != "win32":
        return ""
    import winreg  # type: ignore[unreachable,unused-ignore]

    place = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
    try:
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, place) as key:
            return str(winreg.QueryValueEx(key, "ProcessorNameString")[0]).strip()
    except OSError:
        return ""


def _windows_feature(number: int) -> bool:
    if sys.platform != "win32":
        return False
    import ctypes  # type: ignore[unreachable,unused-ignore]

    return bool(ctypes.windll.kernel32.IsProcessorFeaturePresent(number))
