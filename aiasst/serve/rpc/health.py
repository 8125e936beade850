"""Health of the service as grpc.health.v1 tells it. Knows no model but whether there is one that answers.

"" and "aiasst.v1.Assistant" are SERVING while requests are taken and the first model can answer them. It needs no key, since probes
of orchestrators send none, and it says nothing else.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import grpc
from grpc_health.v1 import health, health_pb2

from aiasst.serve.service import Service

_LOOK_SECONDS = 0.5
"""How late those who watch are told; who asks is told how it is."""


class Health(health.aio.HealthServicer):  # type: ignore[misc]  # the package ships no types
    """Statuses that follow `service`."""

    def __init__(self, service: Service, names: tuple[str, ...]) -> None:
        """`names`: of the services, "" for all together."""
        super().__init__()
        self._service = service
        self._names = names
        self._looking: asyncio.Task[None] | None = None

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        """How a service is now."""
        await self.look()
        return await super().Check(request, context)

    async def look(self) -> None:
        """Ask the service, and tell who watches."""
        serving = self._service.accepting and self._service.ready
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in self._names:
            await self.set(name, status)

    async def begin(self) -> None:
        """Look, and again and again until `end`."""
        await self.look()
        self._looking = asyncio.create_task(self._keep_looking())

    async def end(self) -> None:
        """All services are down from now on."""
        await self.enter_graceful_shutdown()
        if self._looking is not None:
            self._looking.cancel()
            with suppress(asyncio.CancelledError):
                await self._looking

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            await self.look()
