"""The service on a socket: one process, one event loop, until a signal says that it is enough. Knows no model.

The first SIGTERM or SIGINT ends it gracefully: nothing new is taken (503 "stopping"), what is under way may end, then connections
are closed. The second one ends it at once. Nothing is written while it runs, so that a kill leaves nothing half done.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from aiasst.errors import ResourceError
from aiasst.serve.hub import Hub
from aiasst.serve.settings import ServeSettings

_LAST_SECONDS = 5
"""For answers to be sent to their end, once all work has ended."""


def bound(settings: ServeSettings) -> socket.socket:
    """A socket on the address of `settings`, before any model is loaded.

    Raises:
        ResourceError: the port is taken, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    if hasattr(socket, "SO_REUSEADDR"):
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((settings.host, settings.port))
    except OSError as error:
        made.close()
        raise ResourceError(
            f"cannot listen on {settings.host} port {settings.port}: {error.strerror}",
            "choose another --port (0: any that is free), or end what listens there",
        ) from error
    return made


def run(
    app: ASGIApp,
    hub: Hub,
    settings: ServeSettings,
    listening: socket.socket,
    *,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Serve until a signal comes; `ready` is called once requests are answered."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="on",
        server_header=False,
        timeout_graceful_shutdown=_LAST_SECONDS,
        h11_max_incomplete_event_size=settings.limits.most_header_bytes,
        ssl_certfile=None if settings.tls is None else str(settings.tls.certificate),
        ssl_keyfile=None if settings.tls is None else str(settings.tls.key),
    )
    Server(config, hub, ready).run(sockets=[listening])


class Server(uvicorn.Server):
    """uvicorn's server, stopped as told above."""

    def __init__(self, config: uvicorn.Config, hub: Hub, ready: Callable[[], None] = lambda: None) -> None:
        super().__init__(config)
        self._hub = hub
        self._ready = ready
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        if self.started:
            self._ready()

    def stop(self) -> None:
        """Stop gracefully; called again, at once. On the event loop."""
        if self._stopping is not None:
            self._hub.let_go()
            self.should_exit = self.force_exit = True
            return
        self._stopping = asyncio.create_task(self._stop())

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """What uvicorn calls for a signal."""
        if self._loop is None:
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self.stop)

    async def _stop(self) -> None:
        await self._hub.stop()
        self.should_exit = True
