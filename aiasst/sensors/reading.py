"""A sensor, what is missing, and the place where sensors are looked for. Knows no source.

Values are in SI units whatever the system counts in: joules, watts, degrees Celsius, hertz; flags are 0 or 1, events a number.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Literal

Kind = Literal["energy", "power", "temperature", "frequency", "throttle events", "throttled", "under-voltage"]
ReadFn = Callable[[], "float | None"]


@dataclass(frozen=True)
class Sensor:
    """Something that can be read."""

    source: str
    """Name of the module in `sources/`."""
    kind: Kind
    name: str
    read: ReadFn = field(compare=False)
    """None where it cannot be read now; never raises."""
    most: float | None = None
    """Of energy: where the counter begins again at 0. Of a frequency: the highest that the core has."""


@dataclass(frozen=True)
class Missing:
    """What cannot be read, and why."""

    source: str
    name: str
    """Of one sensor; "" where the whole source is missing."""
    reason: str


@dataclass(frozen=True)
class Found:
    """What one source has, or all of them."""

    sensors: tuple[Sensor, ...] = ()
    missing: tuple[Missing, ...] = ()

    def __add__(self, other: Found) -> Found:
        return Found(self.sensors + other.sensors, self.missing + other.missing)

    def of(self, *kinds: Kind) -> tuple[Sensor, ...]:
        """The sensors of these kinds."""
        return tuple(sensor for sensor in self.sensors if sensor.kind in kinds)

    def why_not(self, *sources: str) -> str:
        """The reasons that these sources have, in this order, as one text."""
        told = (missing.reason for source in sources for missing in self.missing if missing.source == source)
        return "; ".join(dict.fromkeys(told))


@dataclass(frozen=True)
class Place:
    """Where sensors are looked for: files below a root, and libraries."""

    root: Path
    library: Callable[[str], ModuleType | None]
    """A module by its name; None where it is not installed."""

    def text(self, path: str) -> str | None:
        """The text of a file below the root, without the white space around it; None where it cannot be read."""
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace").strip().strip("\0")
        except OSError:
            return None

    def number(self, path: str, unit: float = 1.0) -> float | None:
        """The whole number in a file (decimal, or hexadecimal with 0x), times `unit`; None where there is none."""
        text = self.text(path)
        try:
            return None if text is None else int(text, 0) * unit
        except (ValueError, OverflowError):
            return None

    def trouble(self, path: str) -> str:
        """Why `number` gives None for `path`, in words."""
        try:
            text = (self.root / path).read_text(encoding="utf-8", errors="replace").strip()
        except PermissionError:
            return f"/{path} may not be read by this user (many systems keep it for root)"
        except OSError as error:
            return f"/{path} cannot be read: {error.strerror}"
        return f"/{path} holds no number: {text[:20]!r}"

    def has(self, path: str) -> bool:
        """Whether there is such a file or folder."""
        try:
            return (self.root / path).exists()
        except OSError:
            return False

    def glob(self, pattern: str) -> list[str]:
        """Paths below the root that match, in the order of their numbers (cpu2 before cpu10)."""
        try:
            found = [path.relative_to(self.root).as_posix() for path in self.root.glob(pattern)]
        except OSError:
            return []
        return sorted(found, key=lambda path: (len(path), path))

    def reading(self, source: str, kind: Kind, name: str, path: str, unit: float, most: float | None = None) -> Found:
        """A sensor on the file `path`, whose numbers count in `unit`; missing where the file cannot be read now."""

        def read() -> float | None:
            return self.number(path, unit)

        if read() is None:
            return Found(missing=(Missing(source, name, self.trouble(path)),))
        return Found((Sensor(source, kind, name, read, most),))


def absent(source: str, reason: str) -> Found:
    """A whole source is missing."""
    return Found(missing=(Missing(source, "", reason),))


def this_place() -> Place:
    """The machine that this process runs on."""
    return Place(Path("/"), installed)


def installed(name: str) -> ModuleType | None:
    """The module `name`, or None where it is not installed or does not load."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
