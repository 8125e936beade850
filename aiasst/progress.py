"""How long work reports on itself: one event type and one callback. Knows nothing of terminals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """A stage of long work has come this far: `done` of `total` units (`total` 0 = unknown), with a short note."""

    stage: str
    done: float
    total: float
    note: str = ""


ProgressFn = Callable[[Progress], None]


def silent(event: Progress) -> None:
    """The callback of those who do not watch."""
