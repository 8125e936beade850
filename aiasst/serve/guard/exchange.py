"""One HTTP answer on its way out: headers added, a refusal in place of it, a connection ended whose request was not read.

Knows no rule; it is told which headers, and the body tells why it was refused.
"""

from __future__ import annotations

from aiasst.serve.guard import asgi
from aiasst.serve.guard.answers import error_body, error_headers
from aiasst.serve.guard.headers import completed
from aiasst.serve.guard.sizes import Body
from aiasst.serve.refusals import Refusal

CLOSE = (b"connection", b"close")


class Exchange:
    """An ASGI `send` for one request."""

    def __init__(self, send: asgi.Send, body: Body, *, added: asgi.Headers, http1: bool) -> None:
        """`added`: headers of any answer that does not set them itself; `http1`: a connection serves requests one by one."""
        self.started = False
        """The head of an answer is out, so that no other can be given."""
        self.added = added
        self._send, self._body, self._http1 = send, body, http1
        self._replaced = self._closing = False

    async def send(self, message: asgi.Message) -> None:
        """What the application answers; where its request was refused while it read, that is answered instead."""
        if self._replaced:
            return
        if message["type"] == "http.response.start" and self._body.refusal is not None:
            await self.refuse(self._body.refusal)
            return
        await self._forward(message)

    async def refuse(self, refusal: Refusal) -> None:
        """Answer with a refusal."""
        self._replaced = True
        body = error_body(refusal)
        start = {"type": "http.response.start", "status": refusal.status, "headers": error_headers(refusal, body)}
        await self._forward(start)
        await self._forward({"type": "http.response.body", "body": body})

    async def _forward(self, message: asgi.Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": self._headers(list(message.get("headers", [])))}
            self.started = True
            self._body.answered()
        elif self._closing and message["type"] == "http.response.body" and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._body.linger()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    def _headers(self, headers: asgi.Headers) -> asgi.Headers:
        """With a body that nobody read the next request's head would be looked for in its midst, or it would be read for ever."""
        headers = completed(headers, self.added)
        self._closing = self._http1 and not self._body.complete
        if self._closing:
            headers = [*(pair for pair in headers if pair[0] != CLOSE[0]), CLOSE]
        return headers
