"""The service put together: all protocols over one hub as one ASGI application. Knows no socket.

    request log ──▶ guard ──▶ forward (to a peer, where it is too much here) ──▶ FastAPI: routers over the service

`routers` is the place where what is served is listed.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI
from starlette.types import ASGIApp

from aiasst.serve import health, metrics, page, query, status, stream
from aiasst.serve.forward import Forward
from aiasst.serve.guard import Gate, Guard
from aiasst.serve.hub import Hub
from aiasst.serve.metrics import Metrics
from aiasst.serve.request_log import PromptLog, RequestLog
from aiasst.serve.rest import errors
from aiasst.serve.rest import router as rest
from aiasst.serve.service import Service
from aiasst.serve.settings import ServeSettings
from aiasst.serve.watch import Watch
from aiasst.version import __version__

_DESCRIPTION = "Models on this machine, as OpenAI's API speaks of them. Fields beyond it are marked as extensions."


def routers(service: Service, counted: Metrics, settings: ServeSettings, watch: Watch) -> list[APIRouter]:
    """Every protocol over HTTP and WebSocket; `watch` is told of refusals that do not reach the service."""
    found = [
        rest(service),
        query.router(service),
        stream.router(service, settings.limits, watch),
        status.router(counted, service),
        metrics.router(counted),
        health.router(service),
    ]
    return [*found, page.router()] if settings.page else found


def application(hub: Hub, counted: Metrics, settings: ServeSettings, gate: Gate) -> ASGIApp:
    """What a server runs: the models of `hub`, started and ended with it.

    Args:
        hub: the models; its watch must tell `counted`.
        counted: the figures.
        settings: as they were checked.
        gate: who may ask; shared with protocols that do not pass through here.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        app.openapi()  # kept; to make it takes half a second, which answers under way must not wait for
        hub.start()
        try:
            yield
        finally:
            await hub.abort()

    app = FastAPI(
        title="aiasst",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        # Their pages load scripts from elsewhere; the document itself is at /openapi.json.
        docs_url=None,
        redoc_url=None,
    )
    errors.install(app)
    for router in routers(service_of(hub, settings), counted, settings, hub.watch):
        app.include_router(router, responses=errors.ERRORS)
    inner = Forward(app, hub, settings.peers) if settings.peers else app
    return RequestLog(Guard(inner, settings, hub.watch, gate=gate), counted)


def service_of(hub: Hub, settings: ServeSettings) -> Service:
    """The models as protocols ask them; what is said is noted for the log only where that was chosen."""
    return PromptLog(hub) if settings.log_prompts else hub
