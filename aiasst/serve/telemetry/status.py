"""GET /v1/status: how the service is doing now and how it did during the last minute, as JSON for a page. Counts nothing itself."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Annotated

import psutil
from fastapi import APIRouter, Query, Response

from aiasst.engine.engine import EngineStats
from aiasst.serve.service import Kind, ModelState, Service, State
from aiasst.serve.telemetry.metrics import Metrics
from aiasst.serve.telemetry.tallies import LONGEST_SECONDS, Lately, Spread
from aiasst.version import __version__


@dataclass(frozen=True)
class Quantiles:
    """A spread of seconds; null where there was none."""

    count: int
    mean: float | None
    p50: float | None
    p90: float | None
    p99: float | None

    @classmethod
    def of(cls, spread: Spread) -> Quantiles:
        """Those of a spread, straight between the bounds of its buckets."""
        mean = spread.total / spread.count if spread.count else None
        return cls(spread.count, mean, *map(spread.quantile, (0.5, 0.9, 0.99)))


@dataclass(frozen=True)
class Cache:
    """The cache of a loaded model."""

    slots: int
    capacity_tokens: int
    """That all its rows have room for."""
    active_tokens: int
    """Of requests under way."""
    bytes: int
    prefix_bytes: int
    """Kept beside the rows."""


@dataclass(frozen=True)
class ModelStatus:
    """One model, now and lately."""

    name: str
    kind: Kind
    task: str
    state: State
    problem: str
    running: int
    waiting: int
    weight_bytes: int
    context_length: int
    requests_per_second: float
    """That ended."""
    refusals_per_second: float
    prompt_tokens_per_second: float
    """Of requests that ended, those from the cache included."""
    completion_tokens_per_second: float
    """As they were told, of requests under way too."""
    time_to_first_token: Quantiles
    inter_token_latency: Quantiles
    request_duration: Quantiles
    embedding_duration: Quantiles
    prefix_hit_ratio: float | None
    """Tokens of prompts that were in the cache."""
    draft_acceptance_ratio: float | None
    batch_rows: float | None
    """Tokens a run that decodes, since the model was loaded."""
    cache: Cache | None


@dataclass(frozen=True)
class HostStatus:
    """The machine; null where it does not tell."""

    device: str
    utilization: float | None
    temperature_celsius: float | None
    power_watts: float | None
    throttle_events: float | None
    missing: tuple[str, ...]
    """Why there is no temperature or power."""
    resident_bytes: int
    """Memory of this process."""
    ceiling_bytes: int | None
    """Of all loaded models together."""
    memory_bytes: int
    memory_available_bytes: int


@dataclass(frozen=True)
class Status:
    """The service."""

    version: str
    accepting: bool
    ready: bool
    uptime_seconds: float
    window_seconds: float
    """What "lately" was for rates and quantiles."""
    models: tuple[ModelStatus, ...]
    host: HostStatus
    refusals: dict[str, int]
    """By reason, since the start."""
    log_lines_lost: int | None


def router(metrics: Metrics, service: Service) -> APIRouter:
    """GET /v1/status."""
    routes, process, began = APIRouter(prefix="/v1", tags=["status"]), psutil.Process(), time.monotonic()

    @routes.get("/status", summary="How the service is doing")
    async def status(
        response: Response, window: Annotated[float, Query(ge=5, le=LONGEST_SECONDS, allow_inf_nan=False)] = 60.0
    ) -> Status:
        """Now, and during the last `window` seconds."""
        response.headers["Cache-Control"] = "no-store"
        host = await asyncio.to_thread(metrics.host.read)
        models, memory = service.models(), psutil.virtual_memory()
        ceilings = [model.stats.ceiling_bytes for model in models if model.stats and model.stats.ceiling_bytes]
        return Status(
            version=__version__,
            accepting=service.accepting,
            ready=service.ready,
            uptime_seconds=time.monotonic() - began,
            window_seconds=window,
            models=tuple(_model(model, metrics.tallies.lately(model.name, window)) for model in models),
            host=HostStatus(
                device=metrics.device,
                utilization=metrics.utilization(),
                temperature_celsius=host.celsius,
                power_watts=host.watts,
                throttle_events=host.throttle_events,
                missing=host.missing,
                resident_bytes=process.memory_info().rss,
                ceiling_bytes=sum(ceilings) or None,
                memory_bytes=memory.total,
                memory_available_bytes=memory.available,
            ),
            refusals=metrics.refusals(),
            log_lines_lost=metrics.lost_lines(),
        )

    return routes


def _model(model: ModelState, lately: Lately) -> ModelStatus:
    tally, stats = lately.tally, model.stats
    return ModelStatus(
        name=model.name,
        kind=model.kind,
        task=model.task,
        state=model.state,
        problem=model.problem,
        running=model.running,
        waiting=model.waiting,
        weight_bytes=model.weight_bytes,
        context_length=model.context_length,
        requests_per_second=lately.rate(tally.ended),
        refusals_per_second=lately.rate(tally.refused),
        prompt_tokens_per_second=lately.rate(tally.prompt_tokens),
        completion_tokens_per_second=lately.rate(tally.first_token.count + tally.next_token.count),
        time_to_first_token=Quantiles.of(tally.first_token),
        inter_token_latency=Quantiles.of(tally.next_token),
        request_duration=Quantiles.of(tally.duration),
        embedding_duration=Quantiles.of(tally.embedding),
        prefix_hit_ratio=_ratio(tally.cached_tokens, tally.prompt_tokens),
        draft_acceptance_ratio=_ratio(tally.accepted_tokens, tally.drafted_tokens),
        batch_rows=None if stats is None else _ratio(stats.decoded_tokens, stats.decode_steps),
        cache=None if stats is None else _cache(stats),
    )


def _cache(stats: EngineStats) -> Cache:
    room = stats.slots * stats.capacity
    return Cache(stats.slots, room, stats.active_tokens, stats.cache_bytes, stats.prefix_bytes)


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
