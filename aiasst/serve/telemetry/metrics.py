"""What happens in the service, counted: the watch behind GET /metrics and GET /v1/status. Knows no engine and no text format.

What requests do is counted as it is told; what models, the host and the process are is asked for when somebody reads. Labels are
bounded: models are those that the service has, callers are names of keys. All but writing the text is done on the event loop.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import get_args

from fastapi import APIRouter, Request, Response

from aiasst.engine.requests import Finished
from aiasst.engine.text import Usage
from aiasst.sensors import find
from aiasst.serve.refusals import Reason
from aiasst.serve.service import ModelState
from aiasst.serve.telemetry.exposition import Reading, process_collector, text
from aiasst.serve.telemetry.host import Host
from aiasst.serve.telemetry.tallies import NOBODY, Tallies


def _unknown() -> None:
    """No reading."""


def _no_models() -> tuple[ModelState, ...]:
    return ()


class Metrics:
    """A `Watch` that counts."""

    def __init__(self, callers: Iterable[str] = (), *, device: str = "", host: Host | None = None) -> None:
        """`callers`: names of the keys, which become labels. `device`: the machine, in words. `host`: None for this machine."""
        self.device = device
        self.host = host or Host(find())
        self.models: Callable[[], Sequence[ModelState]] = _no_models
        self.utilization: Callable[[], float | None] = _unknown
        self.lost_lines: Callable[[], int | None] = _unknown
        self.tallies = Tallies(())
        self._callers = frozenset(callers)
        self._requests: Counter[tuple[str, str, str]] = Counter()
        self._tokens: Counter[tuple[str, str, str]] = Counter()
        self._refusals: Counter[tuple[str, str, str]] = Counter()
        self._process = process_collector()

    def ask(
        self,
        models: Callable[[], Sequence[ModelState]],
        *,
        utilization: Callable[[], float | None] = _unknown,
        lost_lines: Callable[[], int | None] = _unknown,
    ) -> None:
        """Whom to ask when somebody reads, on the event loop; once, before anything is told. The models are these from now on.

        `utilization` is from 0 to 1; `lost_lines` are those of the log. None: not known.
        """
        self.models, self.utilization, self.lost_lines = models, utilization, lost_lines
        names = [model.name for model in models()]
        self.tallies = Tallies(names)
        # A series that begins at its first event hides that event from PromQL's rate.
        self._refusals.update({(model, NOBODY, reason): 0 for model in names for reason in get_args(Reason)})

    def began(self, model: str, caller: str) -> None:
        """Count a request that was admitted."""
        self.tallies.of(model).begun += 1

    def first_token(self, model: str, seconds: float) -> None:
        """Count a first token."""
        self.tallies.of(model).first_token.add(seconds)

    def next_token(self, model: str, seconds: float) -> None:
        """Count a later token."""
        self.tallies.of(model).next_token.add(seconds)

    def ended(self, model: str, caller: str, finished: Finished | None, usage: Usage | None, seconds: float) -> None:
        """Count a request that ended, and its tokens."""
        tally, labels = self.tallies.of(model), self._labels(model, caller)
        tally.ended += 1
        tally.duration.add(seconds)
        self._requests[*labels, finished or "failed"] += 1
        if usage is None:
            return
        tally.prompt_tokens += usage.prompt_tokens
        tally.cached_tokens += usage.cached_tokens
        tally.completion_tokens += usage.completion_tokens
        tally.drafted_tokens += usage.drafted_tokens
        tally.accepted_tokens += usage.accepted_tokens
        self._tokens[*labels, "prompt"] += usage.prompt_tokens
        self._tokens[*labels, "completion"] += usage.completion_tokens

    def embedded(self, model: str, caller: str, texts: int, tokens: int, seconds: float) -> None:
        """Count texts that became vectors."""
        tally, labels = self.tallies.of(model), self._labels(model, caller)
        tally.ended += 1
        tally.embedding.add(seconds)
        tally.embedded_texts += texts
        tally.prompt_tokens += tokens
        self._requests[*labels, "embedded"] += 1
        self._tokens[*labels, "prompt"] += tokens

    def refused(self, model: str, caller: str, reason: Reason) -> None:
        """Count a request that was not served."""
        self.tallies.of(model).refused += 1
        self._refusals[*self._labels(model, caller), reason] += 1

    def refusals(self) -> dict[str, int]:
        """Requests that were not served, by reason; those that occurred."""
        told: Counter[str] = Counter()
        for (_, _, reason), count in self._refusals.items():
            told[reason] += count
        return {reason: count for reason, count in told.items() if count}

    async def text(self, accept: str) -> tuple[bytes, str]:
        """All figures for Prometheus in the format that an Accept header asks for, and its content type."""
        models, utilization, lost_lines = tuple(self.models()), self.utilization(), self.lost_lines()
        tallies = {model: tally.copy() for model, tally in self.tallies}
        requests, tokens, refusals = self._requests.copy(), self._tokens.copy(), self._refusals.copy()

        def write() -> tuple[bytes, str]:
            reading = Reading(
                device=self.device,
                models=models,
                tallies=tallies,
                requests=requests,
                tokens=tokens,
                refusals=refusals,
                host=self.host.read(),
                utilization=utilization,
                lost_lines=lost_lines,
            )
            return text(reading, accept, self._process)

        return await asyncio.to_thread(write)

    def _labels(self, model: str, caller: str) -> tuple[str, str]:
        return (model if model in self.tallies else NOBODY), (caller if caller in self._callers else NOBODY)


def router(metrics: Metrics) -> APIRouter:
    """GET /metrics, as Prometheus' text or as OpenMetrics where the reader accepts it."""
    routes = APIRouter()

    @routes.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def read(request: Request) -> Response:
        """Figures for Prometheus."""
        body, content_type = await metrics.text(request.headers.get("accept", ""))
        return Response(body, media_type=content_type, headers={"Cache-Control": "no-store"})

    return routes
