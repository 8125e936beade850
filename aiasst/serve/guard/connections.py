"""Connections that come slowly, take slowly, or are too many: what ASGI never sees. The one file of the guard that knows uvicorn.

Uvicorn waits for ever for the head of a request that comes a byte at a time, and for a client that does not read its answer. Here
the head has a time, and so has an answer of which nothing is taken; then the connection is ended. HTTP is parsed by h11, which
refuses what could be read in two ways.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from aiasst.serve.settings import Limits

HEAD_SECONDS = 10.0
"""For the head of a request; the limit of the body where that is less."""
RESERVED = 32
"""Connections beyond `most_connections`: the guard refuses requests on them with an answer, and says that it is alive."""
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class StuckWrites:
    """Ends a connection that takes nothing of what was written for some seconds."""

    def __init__(self, transport: asyncio.Transport, seconds: float) -> None:
        """Whatever the system does not take at once pauses writing, so that it is noticed also while the connection closes."""
        self._transport, self._seconds = transport, seconds
        self._timer: asyncio.TimerHandle | None = None
        self._left = 0
        transport.set_write_buffer_limits(high=1, low=0)

    def paused(self) -> None:
        """Something waits to be taken."""
        self.resumed()
        self._left = self._transport.get_write_buffer_size()
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._look)

    def resumed(self) -> None:
        """All was taken, or the connection is gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        if self._transport.get_write_buffer_size() < self._left:
            self.paused()
        else:
            self._transport.abort()


class HttpConnection(H11Protocol):
    """HTTP/1.1 with a time for heads and a limit of connections; `limits` is set by `protocols`."""

    limits: Limits

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        self._head_timer: asyncio.TimerHandle | None = None
        self._upgraded = False
        self._writes = StuckWrites(transport, self.limits.body_seconds)
        if len(self.connections) > self.limits.most_connections + RESERVED:
            transport.write(BUSY)
            transport.close()
        else:
            self._await_head()

    def data_received(self, data: bytes) -> None:
        """Some of a request came; the time of its head goes on until the head is whole."""
        super().data_received(data)
        if self._upgraded or self.transport.is_closing() or self._is_answering():
            self._head_is_whole()
        elif self._head_timer is None:
            self._await_head()

    def handle_websocket_upgrade(self, event: Any) -> None:
        """From now on the connection is another protocol's."""
        self._upgraded = True
        self._head_is_whole()
        self._writes.resumed()
        super().handle_websocket_upgrade(event)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._head_is_whole()
        self._writes.resumed()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client takes less than is written."""
        super().pause_writing()
        self._writes.paused()

    def resume_writing(self) -> None:
        """It has taken everything."""
        super().resume_writing()
        self._writes.resumed()

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _await_head(self) -> None:
        seconds = min(HEAD_SECONDS, self.limits.body_seconds)
        self._head_timer = self.loop.call_later(seconds, self._head_too_slow)

    def _head_is_whole(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_too_slow(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self.transport.write(TOO_SLOW)
            self.transport.close()


class _OfOurs(logging.Filter):
    """Only what is wrong here: uvicorn also tells queries of URLs, and, with a traceback, that a client's text is no UTF-8."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written."""
        return record.levelno >= logging.WARNING and not str(record.msg).startswith("Invalid UTF-8")


_log = logging.getLogger("uvicorn.error.websocket")
_log.addFilter(_OfOurs())


class WebSocketConnection(WebSocketsSansIOProtocol):
    """A WebSocket whose client must read, and whose messages are in no log; `limits` is set by `protocols`."""

    limits: Limits

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """As uvicorn makes it."""
        super().__init__(*arguments, **named)
        self.logger = self.conn.logger = _log
        # Else every message is written where the log's level is "debug".
        self.conn.debug = False

    async def send(self, message: Any) -> None:
        """What the application says; to a client that was closed for its bytes it is said in vain, and that is no fault of ours."""
        if self.handshake_complete and self.close_sent:
            raise ClientDisconnected
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            # The handshake was refused, which is an end of it too; uvicorn would log that there was none.
            self.handshake_complete = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The handshake's head is whole."""
        super().connection_made(transport)
        self._writes = StuckWrites(self.transport, self.limits.body_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._writes.resumed()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client takes less than is written."""
        super().pause_writing()
        self._writes.paused()

    def resume_writing(self) -> None:
        """It has taken everything."""
        super().resume_writing()
        self._writes.resumed()


def protocols(limits: Limits) -> tuple[type[HttpConnection], type[WebSocketConnection]]:
    """Both classes with these limits, as uvicorn takes them."""
    return (
        type("HttpConnection", (HttpConnection,), {"limits": limits}),
        type("WebSocketConnection", (WebSocketConnection,), {"limits": limits}),
    )
