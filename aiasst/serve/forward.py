"""Requests that would wait here go to another instance, over HTTP, streams included. Knows the model's name alone of it.

A request is forwarded once: a header marks it, and whoever gets a marked one serves it or refuses it. Where no peer takes it (it
does not answer, is full, or is stopping), it waits in the line here as if there were none.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aiasst.errors import MissingExtraError
from aiasst.serve.refusals import Refusal

if TYPE_CHECKING:
    import httpx

MARK = "x-aiasst-forwarded"
CONNECT_SECONDS = 2.0
_FORWARDED_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/query")
"""Answers that depend on nothing which an instance remembers."""
_BUSY = frozenset({429, 502, 503})
_OWN_HEADERS = frozenset(
    {"host", "content-length", "connection", "keep-alive", "transfer-encoding", "te", "upgrade", "expect"}
)
"""Of one connection, not of the request (RFC 9110, 7.6.1)."""
_log = logging.getLogger(__name__)


class Crowded(Protocol):
    """What is asked of the hub."""

    def crowded(self, model: str) -> bool:
        """Whether a request for the model would have to wait; Refusal where there is no such model."""


class Forward:
    """An ASGI application around another one."""

    def __init__(self, app: ASGIApp, hub: Crowded, peers: Sequence[str]) -> None:
        """`peers`: URLs of other instances with the same models and keys."""
        try:
            import httpx
        except ImportError:
            raise MissingExtraError("httpx", "serve") from None
        self._app, self._hub = app, hub
        self._peers = [peer.rstrip("/") for peer in peers]
        self._next = itertools.count()
        timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
        # Proxies of the environment are for the world outside; peers are named by whoever starts the service.
        self._client = httpx.AsyncClient(timeout=timeout, trust_env=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] == "lifespan":
            async with self._client:
                await self._app(scope, receive, send)
            return
        if (
            scope["type"] != "http"
            or scope["method"] != "POST"
            or scope["path"] not in _FORWARDED_PATHS
            or _marked(scope)
        ):
            await self._app(scope, receive, send)
            return
        body = await _whole(receive)
        if body is None:
            return
        if self._is_crowded(body) and await self._forwarded(scope, body, receive, send):
            return
        await self._app(scope, _replayed(body, receive), send)

    def _is_crowded(self, body: bytes) -> bool:
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            return False
        model = document.get("model", "") if isinstance(document, dict) else ""
        try:
            return isinstance(model, str) and self._hub.crowded(model)
        except Refusal:
            return False

    async def _forwarded(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> bool:
        """Ask the peers in turn; whether one of them answered."""
        import httpx

        first = next(self._next)
        for offset in range(len(self._peers)):
            peer = self._peers[(first + offset) % len(self._peers)]
            try:
                if await self._asked(peer, scope, body, receive, send):
                    return True
            except httpx.TransportError as error:
                _log.warning("peer %s does not answer: %s", peer, type(error).__name__)
        return False

    async def _asked(self, peer: str, scope: Scope, body: bytes, receive: Receive, send: Send) -> bool:
        """Pass the peer's answer on; False where it is too busy as well. One that it breaks off is broken off here too."""
        import httpx

        request = self._client.build_request("POST", peer + scope["path"], headers=_passed_on(scope), content=body)
        async with AsyncExitStack() as stack:
            response = await self._client.send(request, stream=True)
            stack.push_async_callback(response.aclose)
            if response.status_code in _BUSY:
                return False
            gone = asyncio.ensure_future(_gone(receive))
            passing = asyncio.ensure_future(_pass(response, send))
            try:
                await asyncio.wait({gone, passing}, return_when=asyncio.FIRST_COMPLETED)
                if passing.done():
                    passing.result()
            except httpx.TransportError as error:
                # Its head is out, so no other peer can be asked; the server ends the connection, and the client sees it.
                _log.warning("peer %s broke off its answer: %s", peer, type(error).__name__)
            finally:
                for task in (gone, passing):
                    task.cancel()
                await asyncio.gather(gone, passing, return_exceptions=True)
        return True


async def _pass(response: httpx.Response, send: Send) -> None:
    headers = [(k.lower(), v) for k, v in response.headers.raw if k.lower().decode() not in _OWN_HEADERS]
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    async for piece in response.aiter_raw():
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _marked(scope: Scope) -> bool:
    return any(name == MARK.encode() for name, _ in scope["headers"])


def _passed_on(scope: Scope) -> list[tuple[str, str]]:
    """The request's headers with the mark; its key goes along, since peers have the same ones.

    Not the origin of a page: whether it may ask was decided here, and to the peer it would be a foreign one.
    """
    kept = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
    return [(name, value) for name, value in kept if name not in _OWN_HEADERS | {"origin"}] + [(MARK, "1")]


async def _whole(receive: Receive) -> bytes | None:
    """The body; None where the client left before its end."""
    pieces: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(pieces)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body once more, then what comes behind it."""
    told = False

    async def again() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        message: dict[str, Any] = {"type": "http.request", "body": body, "more_body": False}
        return message

    return again


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
