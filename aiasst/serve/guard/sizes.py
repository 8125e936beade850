"""Bodies and headers within their limits: how many bytes, how many at once, how slowly. Knows nothing of what they say.

A body is refused at the byte that is too much: what was announced is never read, what comes in chunks is read up to the limit only.
"""

from __future__ import annotations

import asyncio
import time

from aiasst.serve.guard import asgi
from aiasst.serve.refusals import Refusal
from aiasst.serve.settings import Limits

MOST_HEADERS = 100
BODIES_AT_ONCE = 16
"""As many of the largest bodies as are kept in memory at once, whoever sends them."""
LINGER_SECONDS = 1.0
"""Time in which a client that still sends may see why it was refused before the connection ends."""


def check_headers(headers: asgi.Headers, limits: Limits) -> None:
    """Raise if they are too many or too large.

    Raises:
        Refusal: "headers_too_large".
    """
    # As in HTTP/1.1: a colon, a space and the end of line for each.
    size = sum(len(name) + len(value) + 4 for name, value in headers)
    if len(headers) > MOST_HEADERS:
        raise Refusal("headers_too_large", f"{len(headers)} headers, and {MOST_HEADERS} are the most")
    if size > limits.most_header_bytes:
        raise Refusal("headers_too_large", f"{size} bytes of headers, and {limits.most_header_bytes} are the most")


def announced(headers: asgi.Headers) -> int | None:
    """Bytes of the body by Content-Length, 0 where there is no body; None where it comes in chunks.

    Raises:
        Refusal: "invalid": a length that is none, or two of them (request smuggling, RFC 9112 section 6.3).
    """
    lengths = set(asgi.values(headers, b"content-length"))
    chunked = bool(asgi.values(headers, b"transfer-encoding"))
    if len(lengths) > 1 or (lengths and chunked):
        raise Refusal("invalid", "the length of the body is told in two ways")
    if chunked:
        return None
    length = next(iter(lengths), "0")
    if not (length.isascii() and length.isdigit() and len(length) < 20):
        raise Refusal("invalid", "Content-Length is not a number of bytes")
    return int(length)


class Held:
    """Bytes of all bodies that are in memory."""

    def __init__(self, most: int) -> None:
        """`most` bytes."""
        self.most = most
        self.now = 0

    def take(self, size: int) -> None:
        """Count `size` bytes more.

        Raises:
            Refusal: "overloaded"; nothing was counted.
        """
        if self.now + size > self.most:
            raise Refusal("overloaded", "too many large requests at once", "try again soon", retry_after=1.0)
        self.now += size

    def give(self, size: int) -> None:
        """They are gone."""
        self.now -= size


class Body:
    """One request's body on its way to the application: an ASGI `receive` that raises where a limit is passed."""

    def __init__(self, receive: asgi.Receive, headers: asgi.Headers, limits: Limits, held: Held) -> None:
        """Nothing is read yet."""
        self.refusal: Refusal | None = None
        """Why the body was not taken; set before it is raised, since frameworks answer in their own words."""
        self.complete = _has_none(headers)
        """Nothing of it is left to be read."""
        self._answered = False
        self._receive, self._headers, self._held = receive, headers, held
        self._most, self._seconds = limits.most_body_bytes, limits.body_seconds
        self._until = time.monotonic() + limits.body_seconds
        self._size = self._kept = 0

    def check(self) -> None:
        """Look at what was announced.

        Raises:
            Refusal: "too_large", "invalid".
        """
        length = announced(self._headers)
        if length is not None and length > self._most:
            raise self._too_large()

    async def receive(self) -> asgi.Message:
        """The next piece; an answered request whose body passes a limit counts as one whose client has gone.

        Raises:
            Refusal: "too_large", "too_slow", "overloaded".
        """
        if self.complete:
            return await self._receive()
        try:
            return await self._piece()
        except Refusal as refusal:
            self.refusal = refusal
            if self._answered:
                return {"type": "http.disconnect"}
            raise

    def answered(self) -> None:
        """The answer has begun: the application has read what it wants, and the memory is its own business."""
        self._held.give(self._kept)
        self._kept, self._answered = 0, True

    async def linger(self) -> None:
        """Throw away what still comes, as much as a body may have and for a second at most.

        A connection that is closed with unread bytes is reset, and a reset may overtake the answer that tells the reason.
        """
        if self.refusal is not None and self.refusal.reason == "too_slow":
            return
        left = self._most
        try:
            async with asyncio.timeout(min(LINGER_SECONDS, self._seconds)):
                while left > 0 and not self.complete:
                    message = await self._receive()
                    if message["type"] != "http.request":
                        return
                    left -= len(message.get("body", b""))
                    self.complete = not message.get("more_body", False)
        except TimeoutError:
            return

    async def _piece(self) -> asgi.Message:
        if self.refusal is not None:
            raise self.refusal
        try:
            async with asyncio.timeout(self._until - time.monotonic()):
                message = await self._receive()
        except TimeoutError:
            raise Refusal("too_slow", f"the body did not come within {self._seconds:g} seconds") from None
        if message["type"] == "http.request":
            self._count(len(message.get("body", b"")))
            self.complete = not message.get("more_body", False)
        return message

    def _count(self, size: int) -> None:
        self._size += size
        if self._size > self._most:
            raise self._too_large()
        if not self._answered:
            self._held.take(size)
            self._kept += size

    def _too_large(self) -> Refusal:
        return Refusal("too_large", f"the body is larger than {self._most} bytes", "send less at once")


def _has_none(headers: asgi.Headers) -> bool:
    return not asgi.values(headers, b"transfer-encoding") and asgi.first(headers, b"content-length") in (None, "0")
