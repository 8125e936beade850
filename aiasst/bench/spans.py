"""The engine's own spans while it works: steps, their phases, and the session's runs. Keeps times and makes no figures."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Span:
    """Something that began and ended, in seconds on the recorder's clock."""

    name: str
    begin: float
    end: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.begin


class Watcher(Protocol):
    """What is told of work."""

    def phase(self, name: str) -> None:
        """A phase of a step begins; "" ends the step."""

    def run(self, begin: float, end: float) -> None:
        """A run of the session has ended."""


class Nobody:
    """A watcher that keeps nothing."""

    def phase(self, name: str) -> None:
        """Nothing."""

    def run(self, begin: float, end: float) -> None:
        """Nothing."""


class Recorder:
    """A watcher that keeps everything; told by the engine when a phase begins, and by the stopwatch when a run has ended."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.steps: list[Span] = []
        self.phases: list[Span] = []
        self.runs: list[Span] = []
        self._clock = clock
        self._step = 0.0
        self._phase: tuple[str, float] | None = None

    def phase(self, name: str) -> None:
        """A phase of a step begins, and the one before ends; "admit" is a step's first, "" its end."""
        now = self._clock()
        if self._phase is None:
            self._step = now
        else:
            self.phases.append(Span(self._phase[0], self._phase[1], now))
        self._phase = (name, now) if name else None
        if not name:
            self.steps.append(Span("step", self._step, now))

    def run(self, begin: float, end: float) -> None:
        """A run of the session has ended."""
        self.runs.append(Span("session run", begin, end))
