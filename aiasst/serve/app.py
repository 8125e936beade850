"""The service put together: one ASGI application of all protocols over one hub. Knows no socket.

guard ──▶ forward (to a peer, where it is too much here) ──▶ FastAPI: routers over the service
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI
from starlette.types import ASGIApp

from aiasst.serve.forward import Forward
from aiasst.serve.hub import Hub
from aiasst.serve.rest import errors, router
from aiasst.serve.settings import ServeSettings
from aiasst.version import __version__

_DESCRIPTION = "Models on this machine, as OpenAI's API speaks of them. Fields beyond it are marked as extensions."


def application(hub: Hub, settings: ServeSettings, *, more: Sequence[APIRouter] = ()) -> ASGIApp:
    """What a server runs: the models of `hub`, started and stopped with it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
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
    # Every protocol is a router over the service: this is the place where they are put together.
    for each in (router(hub), *more):
        app.include_router(each)
    return Forward(app, hub, settings.peers) if settings.peers else app
