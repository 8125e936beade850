"""What stands before the application: every request of HTTP and WebSocket passes here, or is answered here. Knows no engine.

The order is that of the cost: what a request calls (path, headers, Host, Origin), whether there is room, who asks and how often,
and only then its body. The rules stand in the files beside this one; this one applies them.

    path, headers ─▶ Host ─▶ Origin, preflight ─▶ connections ─▶ key ─▶ rate ─▶ size and pace of the body ─▶ application
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from aiasst.serve.guard import asgi, cors, headers, paths, sizes, sockets
from aiasst.serve.guard.answers import rate_headers
from aiasst.serve.guard.exchange import Exchange
from aiasst.serve.guard.gate import Gate
from aiasst.serve.guard.hosts import Hosts, Origins
from aiasst.serve.guard.keys import presented
from aiasst.serve.guard.request_ids import HEADER as REQUEST_ID
from aiasst.serve.guard.request_ids import request_id
from aiasst.serve.refusals import Refusal
from aiasst.serve.service import Caller
from aiasst.serve.settings import ServeSettings
from aiasst.serve.watch import Watch


class Guard:
    """An ASGI application around another one.

    What it finds out is in `scope["state"]`: "caller" (service.Caller), "request_id" (str), "gate" (Gate, for further requests on
    one connection). Of a WebSocket whose key comes with its first message, "caller" is there once `receive` gives a message.
    """

    def __init__(self, app: asgi.App, settings: ServeSettings, watch: Watch, *, gate: Gate | None = None) -> None:
        """`gate`: one that other protocols share; by default one is made from `settings`."""
        self.gate = gate or Gate(settings)
        self._app, self._settings, self._watch = app, settings, watch
        self._hosts = Hosts(settings.host, settings.hosts)
        self._origins = Origins(settings.origins)
        self._held = sizes.Held(sizes.BODIES_AT_ONCE * settings.limits.most_body_bytes)
        self._open = 0

    def caller(self, authorization: str | None, address: str) -> Caller:
        """Who asks, for protocols that do not pass through here; see `Gate.caller`.

        Raises:
            Refusal: "unauthorized" or "rate_limited".
        """
        return self.gate.caller(authorization, address)

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        """Serve one connection's scope."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _http(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        scope = _with_state(scope, self.gate)
        body = sizes.Body(receive, scope["headers"], self._settings.limits, self._held)
        exchange = Exchange(send, body, added=self._added(scope), http1=scope.get("http_version", "1.1")[0] == "1")
        refusal = None
        try:
            await self._serve(scope, body, exchange)
            refusal = body.refusal
        except Refusal as raised:
            refusal = raised
            if exchange.started:
                raise
            await exchange.refuse(refusal)
        finally:
            body.answered()
            if refusal is not None:
                self._watch.refused("", scope["state"]["caller"].name, refusal.reason)

    async def _serve(self, scope: asgi.Scope, body: sizes.Body, exchange: Exchange) -> None:
        path, head = scope["path"], scope["headers"]
        self._check_head(scope)
        if cors.is_preflight(scope["method"], head):
            answer = {"type": "http.response.start", "status": 204, "headers": cors.preflight(head)}
            await exchange.send(answer)
            await exchange.send({"type": "http.response.body", "body": b""})
        elif self._needs_no_key(path):
            body.check()
            await self._app(scope, body.receive, exchange.send)
        else:
            with self._room():
                exchange.added += self._take_key(scope, _key(scope))
                body.check()
                await self._app(scope, body.receive, exchange.send)

    async def _websocket(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        scope = _with_state(scope, self.gate)
        offered, limits = list(scope.get("subprotocols", [])), self._settings.limits
        scope["subprotocols"] = sockets.without_key(offered)
        socket = sockets.Socket(receive, send, offered=scope["subprotocols"], most_bytes=limits.most_body_bytes)
        try:
            self._check_head(scope)
            with self._room():
                key = _key(scope) or sockets.key_of_subprotocols(offered)
                if key is None and self.gate.keyed:
                    del scope["state"]["caller"]
                    socket.expect_key(lambda given: self._take_key(scope, given), limits.body_seconds)
                else:
                    self._take_key(scope, key)
                await self._app(scope, socket.receive, socket.send)
        except Refusal as refusal:
            self._watch.refused("", "", refusal.reason)
            await socket.deny(
                refusal, self._added(scope), http="websocket.http.response" in scope.get("extensions", {})
            )

    def _check_head(self, scope: asgi.Scope) -> None:
        """What the request calls itself. What asks after our health calls us by whatever name it likes."""
        paths.check(scope["path"])
        sizes.check_headers(scope["headers"], self._settings.limits)
        host = asgi.first(scope["headers"], b"host")
        if scope["type"] == "websocket" or scope["path"] not in paths.HEALTH:
            self._hosts.check(host)
            self._origins.check(asgi.values(scope["headers"], b"origin"), host)

    @contextmanager
    def _room(self) -> Iterator[None]:
        most = self._settings.limits.most_connections
        if self._open >= most:
            message = f"{most} requests are open, and no more are taken at once"
            raise Refusal("overloaded", message, "try again soon", retry_after=1.0)
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    def _take_key(self, scope: asgi.Scope, key: str | None) -> asgi.Headers:
        """Who asks goes into the scope; what is left of the rate comes back as headers."""
        caller = scope["state"]["caller"] = self.gate.known(key)
        if scope["path"] == paths.METRICS:
            return []
        standing = self.gate.admit(caller, asgi.address(scope))
        return rate_headers(standing) if standing is not None else []

    def _is_page(self, path: str) -> bool:
        return self._settings.page and paths.is_page(path)

    def _needs_no_key(self, path: str) -> bool:
        return path in paths.HEALTH or self._is_page(path) or (self._settings.open_metrics and path == paths.METRICS)

    def _added(self, scope: asgi.Scope) -> asgi.Headers:
        """Headers of any answer to this request."""
        return [
            (REQUEST_ID, scope["state"]["request_id"].encode()),
            *headers.answer_headers(scope, static=self._is_page(scope["path"])),
            *cors.answer_headers(self._origins, scope["headers"]),
        ]


def _with_state(scope: asgi.Scope, gate: Gate) -> asgi.Scope:
    """A scope of our own to write into: the server may keep its state for the next request."""
    identity = request_id(asgi.first(scope["headers"], REQUEST_ID))
    return {**scope, "state": {**scope.get("state", {}), "caller": Caller(), "request_id": identity, "gate": gate}}


def _key(scope: asgi.Scope) -> str | None:
    """The key of the headers; the first of each, since a key that is sent twice is either the same or a trick."""
    head = scope["headers"]
    return presented(asgi.first(head, b"authorization"), asgi.first(head, b"x-api-key"))
