"""A tiny application behind the guard on a real server and a free port, and sockets that speak to it byte by byte."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import uvicorn

from aiasst.engine.requests import Finished
from aiasst.engine.text import Usage
from aiasst.serve.guard import Guard, asgi
from aiasst.serve.guard.listening import server_config
from aiasst.serve.refusals import Reason, Refusal
from aiasst.serve.settings import ServeSettings

PATIENCE = 10.0
"""Seconds after which a socket that hears nothing counts as hanging."""


class Told:
    """A watch that remembers refusals."""

    def __init__(self) -> None:
        self.reasons: list[tuple[str, Reason]] = []

    def refused(self, model: str, caller: str, reason: Reason) -> None:
        self.reasons.append((caller, reason))

    def began(self, model: str, caller: str) -> None: ...
    def first_token(self, model: str, seconds: float) -> None: ...
    def next_token(self, model: str, seconds: float) -> None: ...
    def ended(
        self, model: str, caller: str, finished: Finished | None, usage: Usage | None, seconds: float
    ) -> None: ...
    def embedded(self, model: str, caller: str, texts: int, tokens: int, seconds: float) -> None: ...


async def body_of(receive: asgi.Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return body
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return body


async def answer(send: asgi.Send, said: object, status: int = 200, headers: asgi.Headers | None = None) -> None:
    body = json.dumps(said).encode()
    head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *(headers or [])]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


@dataclass
class App:
    """The tiny application; what it saw is kept."""

    calls: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        if scope["type"] == "websocket":
            await self.websocket(scope, receive, send)
        elif scope["type"] == "http":
            self.calls.append(scope["path"])
            try:
                await self.http(scope, receive, send)
            finally:
                self.ended.append(scope["path"])
        else:
            for word in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{word}.complete"})

    async def http(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        match scope["path"]:
            case "/unread":
                await answer(send, "nothing was read")
            case "/swallow":
                # As frameworks do: whatever goes wrong while a body is read is the client's fault, in their own words.
                try:
                    await body_of(receive)
                except Exception:  # noqa: BLE001
                    await answer(send, "their own words", 400)
            case "/refuses":
                raise Refusal("queue_full", "257 requests wait", "try again", retry_after=2.5, parameter="model")
            case "/own-headers":
                await answer(send, "", headers=[(b"Content-Security-Policy", b"own"), (b"server", b"secret/1.0")])
            case "/flood":
                await send({"type": "http.response.start", "status": 200, "headers": []})
                for _ in range(10_000):
                    await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
            case "/wait":
                await body_of(receive)
                assert (await receive())["type"] == "http.disconnect"
            case _:
                body = await body_of(receive)
                state = scope["state"]
                await answer(
                    send,
                    {
                        "size": len(body),
                        "caller": state["caller"].name,
                        "id": state["request_id"],
                        "path": scope["path"],
                    },
                )

    async def websocket(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            text = message.get("text") or repr(message.get("bytes"))
            said = {"caller": scope["state"]["caller"].name, "text": text, "offered": scope["subprotocols"]}
            await send({"type": "websocket.send", "text": json.dumps(said)})
        self.ended.append(scope["path"])


@dataclass
class Served:
    """A server that runs."""

    port: int
    app: App
    told: Told
    server: uvicorn.Server

    def connect(self, *, receive_buffer: int | None = None) -> socket.socket:
        made = socket.socket()
        made.settimeout(PATIENCE)
        if receive_buffer is not None:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        made.connect(("127.0.0.1", self.port))
        return made

    def say(self, *parts: bytes) -> Answer:
        """Send the parts, read one answer."""
        with self.connect() as connection:
            for part in parts:
                connection.sendall(part)
            return read_answer(connection)

    def request(self, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
        """One plain request; `x_api_key="…"` is the header x-api-key."""
        return self.say(
            head(method, path, len(body) if body else None, **{"host": f"127.0.0.1:{self.port}", **headers}) + body
        )

    def until(self, true: Callable[[], bool]) -> None:
        """Wait for what the server's own thread does."""
        end = time.monotonic() + PATIENCE
        while not true():
            assert time.monotonic() < end, "it never came true"
            time.sleep(0.01)


@dataclass
class Answer:
    """Status 0: the connection ended without an answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def said(self) -> dict[str, object]:
        parsed = json.loads(self.body)
        assert isinstance(parsed, dict)
        return parsed

    @property
    def error(self) -> dict[str, object]:
        error = self.said["error"]
        assert isinstance(error, dict)
        assert set(error) == {"message", "type", "param", "code"}
        return error


def head(method: str, path: str, length: int | None = None, **headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    if length is not None:
        lines.append(f"content-length: {length}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def read_answer(connection: socket.socket | ssl.SSLSocket) -> Answer:
    """One answer with its Content-Length, or until the connection ends."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = read(connection)
        if not more:
            return Answer(0, {}, data)
        data += more
    start, _, body = data.partition(b"\r\n\r\n")
    first, *lines = start.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) if ": " in line else (line.rstrip(":"), "") for line in lines)
    values = {line.split(": ", 1)[0].lower(): line.split(": ", 1)[1] for line in lines if ": " in line}
    assert len(headers) == len(lines), "a header came twice"
    length = int(values.get("content-length", "0"))
    while len(body) < length and (more := read(connection)):
        body += more
    return Answer(int(first.split(" ")[1]), values, body)


def read(connection: socket.socket | ssl.SSLSocket) -> bytes:
    """What comes next; empty where the connection has ended, by a reset also."""
    try:
        return connection.recv(65536)
    except ConnectionError:
        return b""


@contextmanager
def served(settings: ServeSettings) -> Iterator[Served]:
    """The tiny application behind the guard, on a thread of its own."""
    app, told = App(), Told()
    server = uvicorn.Server(server_config(Guard(app, settings, told), settings))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.005)
    try:
        yield Served(server.servers[0].sockets[0].getsockname()[1], app, told, server)
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive(), "the server did not stop"
