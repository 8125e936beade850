"""The service's own routes on a real port, without guard and hub, for as long as a test asks."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import uvicorn
from fastapi import FastAPI

from aiasst.serve import query, stream
from aiasst.serve.rest import errors
from aiasst.serve.service import Service
from aiasst.serve.settings import Limits

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T], seconds: float = 60) -> T:
    """Run `work` to its end, which is not put off for ever."""

    async def bounded() -> T:
        async with asyncio.timeout(seconds):
            return await work

    return asyncio.run(bounded())


def application(service: Service, limits: Limits) -> FastAPI:
    app = FastAPI()
    app.include_router(query.router(service))
    app.include_router(stream.router(service, limits))

    errors.install(app)
    return app


@asynccontextmanager
async def served(app: Any, **options: Any) -> AsyncIterator[int]:
    """The port on which `app` is served meanwhile."""
    options = {"lifespan": "off"} | options
    config = uvicorn.Config(app, log_config=None, ws="websockets-sansio", timeout_graceful_shutdown=1, **options)
    server = uvicorn.Server(config)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        serving = asyncio.create_task(server.serve([listening]))
        try:
            while not server.started:
                await asyncio.sleep(0.01)
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            await serving
