"""A service that only says how it is: models in states that a test chooses."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from aiasst.engine.engine import EngineStats
from aiasst.engine.requests import Sampling
from aiasst.engine.text import TextEvent, TextRequest, Usage
from aiasst.sensors.reading import Found
from aiasst.serve.service import Caller, ModelState, Vectors
from aiasst.serve.telemetry.host import Host
from aiasst.serve.telemetry.metrics import Metrics

STATS = EngineStats(
    steps=10,
    prefill_tokens=100,
    cached_tokens=20,
    decoded_tokens=300,
    prefill_seconds=1.0,
    decode_seconds=2.0,
    drafted_tokens=5,
    accepted_tokens=3,
    slots=4,
    capacity=128,
    cache_bytes=10_000,
    prefix_bytes=2_000,
    rows=8,
    waiting=1,
    resident_bytes=10**8,
    ceiling_bytes=10**9,
    paced_seconds=0.0,
    decode_steps=50,
    active_tokens=77,
)
TALKER = ModelState("talker", "text-generation", "text-generation", "ready", "", 0, 8000, 512, True, 1, 2, STATS)
READER = ModelState("reader", "encoder", "feature-extraction", "unloaded", "", 0, 4000, 128, False, 0, 0, None)


@dataclass
class StatedService:
    """Answers every request with the words of its prompt."""

    states: tuple[ModelState, ...] = (TALKER, READER)
    accepting: bool = True
    ready: bool = True
    metrics: Metrics | None = None
    asked: list[TextRequest] = field(default_factory=list)

    def models(self) -> tuple[ModelState, ...]:
        return self.states

    def model(self, name: str) -> ModelState:
        return next(state for state in self.states if state.name == name)

    def defaults(self, model: str) -> Sampling:
        return Sampling()

    async def generate(self, model: str, request: TextRequest, caller: Caller) -> AsyncGenerator[TextEvent, None]:
        self.asked.append(request)
        words = str(request.prompt).split()
        yield TextEvent(request.id, "", None, None)
        for word in words:
            yield TextEvent(request.id, word + " ", None, None)
        yield TextEvent(request.id, "", "stop", Usage(len(words), 0, len(words)))

    async def embed(self, model: str, texts: Sequence[str | tuple[int, ...]], caller: Caller) -> Vectors:
        return Vectors(np.zeros((len(texts), 2), np.float32), len(texts))


def metrics_of(service: StatedService, *callers: str, found: Found = Found()) -> Metrics:  # noqa: B008 - frozen
    """Metrics on a host without sensors, unless some are given."""
    metrics = Metrics(callers, device="a machine", host=Host(found))
    metrics.ask(service.models, utilization=lambda: 0.25, lost_lines=lambda: 0)
    return metrics


def unloaded(state: ModelState) -> ModelState:
    """The same model without its engine."""
    return replace(state, state="unloaded", stats=None)
