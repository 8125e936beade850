"""The key of a WebSocket: in a header, in a subprotocol, or in the first message. Knows no key and no message but that one.

Programs send the header. Pages cannot, so they offer two subprotocols, `aiasst` and `aiasst.key.` followed by the key in base64url
without padding (RFC 4648 section 5), of which the first is chosen; or they send, as their first message, the JSON text
{"authorization": "Bearer KEY"}. Never in the URL: logs, histories and proxies keep those.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable

from aiasst.serve.guard import asgi
from aiasst.serve.guard.answers import error_body, error_headers
from aiasst.serve.guard.headers import completed
from aiasst.serve.guard.keys import presented
from aiasst.serve.refusals import Refusal

SUBPROTOCOL = "aiasst"
KEY_SUBPROTOCOL = "aiasst.key."
MOST_FIRST_BYTES = 4096
FIRST_SECONDS = 10.0
"""In which the first message has to come where it brings the key."""
POLICY_VIOLATION, TOO_LARGE = 1008, 1009
"""Codes of a closing WebSocket (RFC 6455 section 7.4.1)."""


def key_of_subprotocols(offered: list[str]) -> str | None:
    """The key that is offered as a subprotocol; None where none is.

    Raises:
        Refusal: "unauthorized": it is no base64url of text.
    """
    coded = next((name[len(KEY_SUBPROTOCOL) :] for name in offered if name.startswith(KEY_SUBPROTOCOL)), None)
    if coded is None:
        return None
    try:
        return base64.b64decode(coded + "=" * (-len(coded) % 4), altchars=b"-_", validate=True).decode("utf-8")
    except ValueError as error:
        raise Refusal("unauthorized", f"what follows {KEY_SUBPROTOCOL} is not a key in base64url") from error


def without_key(offered: list[str]) -> list[str]:
    """The subprotocols that the application may choose from."""
    return [name for name in offered if not name.startswith(KEY_SUBPROTOCOL)]


def key_of_message(message: asgi.Message) -> str | None:
    """The key of a first message; None where it brings none."""
    text = message.get("text") or ""
    if len(text) > MOST_FIRST_BYTES:
        return None
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return None
    authorization = said.get("authorization") if isinstance(said, dict) else None
    return presented(authorization) if isinstance(authorization, str) else None


class Socket:
    """Both directions of one WebSocket between server and application: sizes kept, and the key's message taken out."""

    def __init__(self, receive: asgi.Receive, send: asgi.Send, *, offered: list[str], most_bytes: int) -> None:
        """`offered`: the client's subprotocols; `most_bytes`: of one message."""
        self._receive, self._send, self._offered, self._most = receive, send, offered, most_bytes
        self._admit: Callable[[str | None], object] | None = None
        self._seconds = FIRST_SECONDS
        self._ended = self._begun = False

    def expect_key(self, admit: Callable[[str | None], object], seconds: float) -> None:
        """The first message brings a key, within `seconds`; `admit` takes it or raises a Refusal, which closes the WebSocket."""
        self._admit, self._seconds = admit, min(seconds, FIRST_SECONDS)

    async def receive(self) -> asgi.Message:
        """The next message for the application; the first of them comes after the key was taken."""
        if self._ended:
            return _disconnected(POLICY_VIOLATION)
        message = await (self._receive() if self._admit is None else self._first())
        if message["type"] == "websocket.receive" and _size(message) > self._most:
            return await self._end(TOO_LARGE, f"a message is larger than {self._most} bytes")
        return message

    async def send(self, message: asgi.Message) -> None:
        """What the application says; nothing goes out after the guard has closed."""
        if self._ended:
            return
        self._begun = True
        if message["type"] == "websocket.accept" and not message.get("subprotocol") and SUBPROTOCOL in self._offered:
            # A browser gives up a WebSocket for which none of the subprotocols was chosen that it offered.
            message = {**message, "subprotocol": SUBPROTOCOL}
        await self._send(message)

    async def deny(self, refusal: Refusal, added: asgi.Headers, *, http: bool) -> None:
        """Refuse the handshake in HTTP's terms where the server can (`http`), else by closing."""
        if not http or self._begun:
            await self.send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": refusal.message})
            return
        body = error_body(refusal)
        head = completed(error_headers(refusal, body), added)
        await self.send({"type": "websocket.http.response.start", "status": refusal.status, "headers": head})
        await self.send({"type": "websocket.http.response.body", "body": body})

    async def _first(self) -> asgi.Message:
        try:
            async with asyncio.timeout(self._seconds):
                message = await self._receive()
        except TimeoutError:
            return await self._end(POLICY_VIOLATION, "no API key came")
        if message["type"] != "websocket.receive" or self._admit is None:
            return message
        try:
            self._admit(key_of_message(message))
        except Refusal as refusal:
            return await self._end(POLICY_VIOLATION, refusal.message)
        self._admit = None
        return await self._receive()

    async def _end(self, code: int, reason: str) -> asgi.Message:
        await self.send({"type": "websocket.close", "code": code, "reason": reason})
        self._ended = True
        return _disconnected(code)


def _size(message: asgi.Message) -> int:
    """Bytes of a message, or characters, which are no more than its bytes."""
    return len(message.get("bytes") or message.get("text") or b"")


def _disconnected(code: int) -> asgi.Message:
    return {"type": "websocket.disconnect", "code": code, "reason": ""}
