"""Health of the service as grpc.health.v1 tells it. Knows no model but whether there is one that answers.

"" and "aiasst.v1.Assistant" are SERVING while requests are taken and the first model can answer them. It needs no key, since probes
of orchestrators send none, and it says nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import suppress

import grpc
from grpc_health.v1 import health_pb2 as pb

from aiasst.serve.refusals import Refusal
from aiasst.serve.service import Service

LOOK_SECONDS = 0.5
"""How late those who watch are told; who asks is told how it is."""
MOST_WATCHING = 64
"""Each holds a call open, and nobody knows who it is."""


class Health:
    """The calls of `grpc.health.v1.Health`, by their names; each may raise a Refusal."""

    def __init__(self, service: Service, names: Collection[str]) -> None:
        """`names`: of the services, "" for all together."""
        self._service = service
        self._names = names
        self._ended = asyncio.Event()
        self._watching = 0

    async def Check(self, request: pb.HealthCheckRequest, context: grpc.aio.ServicerContext) -> pb.HealthCheckResponse:
        """How a service is."""
        if request.service not in self._names:
            raise Refusal("not_found", f"there is no service {request.service!r}")
        return pb.HealthCheckResponse(status=self._status(request.service))

    async def List(self, request: pb.HealthListRequest, context: grpc.aio.ServicerContext) -> pb.HealthListResponse:
        """How all services are."""
        each = {name: pb.HealthCheckResponse(status=self._status(name)) for name in self._names}
        return pb.HealthListResponse(statuses=each)

    async def Watch(self, request: pb.HealthCheckRequest, context: grpc.aio.ServicerContext) -> None:
        """How a service is, now and whenever that changes, until the server ends."""
        if self._watching >= MOST_WATCHING:
            raise Refusal("overloaded", f"{MOST_WATCHING} watch already", "ask with Check", retry_after=LOOK_SECONDS)
        self._watching += 1
        try:
            told: int | None = None
            while True:
                # Before the status is looked at, which is the last one then.
                ended = self._ended.is_set()
                if told != (status := self._status(request.service)):
                    await context.write(pb.HealthCheckResponse(status=status))
                    told = status
                if ended:
                    return
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._ended.wait(), LOOK_SECONDS)
        finally:
            self._watching -= 1

    def end(self) -> None:
        """All services are down from now on; who watches is told, and has no more to wait for."""
        self._ended.set()

    def _status(self, name: str) -> int:
        """A value of HealthCheckResponse.ServingStatus."""
        statuses = pb.HealthCheckResponse.ServingStatus
        if name not in self._names:
            return int(statuses.SERVICE_UNKNOWN)
        serving = self._service.accepting and self._service.ready and not self._ended.is_set()
        return int(statuses.SERVING if serving else statuses.NOT_SERVING)
