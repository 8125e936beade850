"""The service on its sockets: one process, one event loop, until a signal says that it is enough. Knows no model.

The first SIGTERM or SIGINT ends it gracefully: nothing new is taken (503 "stopping"), what is under way may end, then connections
are closed. The second one ends it at once. Nothing is written while it runs but the log, so that a kill leaves nothing half done.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from aiasst.errors import ResourceError
from aiasst.serve.models.hub import Hub
from aiasst.serve.settings import ServeSettings

if TYPE_CHECKING:
    from aiasst.serve.rpc.server import RpcServer

StartCalls = Callable[[], Awaitable["RpcServer | None"]]
"""Begins to listen for gRPC on the running loop, where it is wanted."""
_LAST_SECONDS = 5
"""For answers to be sent to their end, once all work has ended."""


def bound(settings: ServeSettings) -> socket.socket:
    """A socket on the address of `settings`, before any model is loaded.

    Raises:
        ResourceError: the port is taken, or the address is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise ResourceError(
            f"cannot listen on {settings.host}: {error.strerror}", "give an address of this machine with --host"
        ) from error
    made = socket.socket(family, kind, protocol)
    if os.name != "nt":  # there it would let two programs listen at once
        # Else a service that is started again must wait until the old connections' states have passed.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind(address)
    except OSError as error:
        made.close()
        raise ResourceError(
            f"cannot listen on {settings.host} port {settings.port}: {error.strerror}",
            "choose another --port (0: any that is free), or end what listens there",
        ) from error
    return made


async def _no_calls() -> None:
    """Nothing is wanted."""


class Server(uvicorn.Server):
    """uvicorn's server, stopped as told above."""

    def __init__(
        self,
        config: uvicorn.Config,
        hub: Hub,
        *,
        start_calls: StartCalls = _no_calls,
        ready: Callable[[int | None], None] = lambda port: None,
    ) -> None:
        """`ready` is called once requests are answered, with the port of gRPC, if any."""
        super().__init__(config)
        config.timeout_graceful_shutdown = _LAST_SECONDS
        self._hub = hub
        self._start_calls = start_calls
        self._calls: RpcServer | None = None
        self._ready = ready
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen.

        Raises:
            ResourceError: the port of gRPC is taken.
        """
        # First, since its errors are for whoever started the service, and nothing else runs yet.
        self._calls = await self._start_calls()
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        if self.started:
            self._ready(None if self._calls is None else self._calls.port)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End what is left."""
        if self._calls is not None:
            await self._calls.stop(_LAST_SECONDS)
        await super().shutdown(sockets)

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
