"""Server-sent events, and clients that go away: their work ends with them. Knows no document and no service.

The format is that of the HTML standard (section 9.2). A comment keeps proxies from closing a connection on which nothing comes.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

PING_SECONDS = 15.0
DONE = b"data: [DONE]\n\n"
STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer; as server-sent events where `stream` is true",
        "content": {"text/event-stream": {}},
    }
}
"""For the OpenAPI document of a route that streams."""
_CLIENT_CLOSED = 499
"""Nobody reads it; logs show it."""

T = TypeVar("T")


class ClientGoneError(Exception):
    """Whoever asked has closed the connection."""


def event(document: object, name: str | None = None) -> bytes:
    """One event with a JSON document. All but ASCII is escaped: some clients take U+2028 and its like for ends of lines."""
    data = json.dumps(document, separators=(",", ":"))
    return f"data: {data}\n\n".encode() if name is None else f"event: {name}\ndata: {data}\n\n".encode()


async def until_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives; it is cancelled when the client goes away. The body must have been read.

    Raises:
        ClientGoneError: it went.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        await _ended(task, gone)


def nobody_there() -> Response:
    """What is answered to a client that is gone."""
    return Response(status_code=_CLIENT_CLOSED)


class EventStream(Response):
    """Events as they come, until they end or the client goes away; then they are closed at once."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._sent = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        pump = asyncio.ensure_future(self._pump(send))
        others = [asyncio.ensure_future(_gone(receive)), asyncio.ensure_future(self._ping(send))]
        try:
            await asyncio.wait({pump, *others}, return_when=asyncio.FIRST_COMPLETED)
            if pump.done():
                pump.result()
        finally:
            await _ended(pump, *others)

    async def _pump(self, send: Send) -> None:
        clock = asyncio.get_running_loop().time
        async with aclosing(self._events) as events:
            async for piece in events:
                self._sent = clock()
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _ping(self, send: Send) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(PING_SECONDS)
            if clock() - self._sent >= PING_SECONDS:
                await send({"type": "http.response.body", "body": b": ping\n\n", "more_body": True})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _ended(*tasks: asyncio.Future[Any]) -> None:
    """Cancel those that are not done, and wait for them."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
