"""Connections below the application: slow heads, clients that do not read, too many, bytes that are no HTTP."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiasst.serve.guard.connections import RESERVED
from aiasst.serve.settings import Limits, ServeSettings
from tests.serve.guard.served import PATIENCE, Served, head, read, read_answer, served

PIECES = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\n",
        b"GET /%ff%fe HTTP/1.1\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"host: localhost\r\n",
        b"host: \xff\xfe\r\n",
        b"content-length: 5\r\n",
        b"content-length: 99999999999999999999\r\n",
        b"transfer-encoding: chunked\r\n",
        b"upgrade: websocket\r\nconnection: upgrade\r\n",
        b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n",
        b"expect: 100-continue\r\n",
        b"\r\n",
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b"FFFFFFFFFFFFFFFFFF\r\n",
        b"{",
        b"\x16\x03\x01\x02\x00\x01\x00",
    ]
)


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    limits = Limits(body_seconds=0.4, most_body_bytes=1000)
    with served(ServeSettings(port=0, limits=limits)) as running:
        yield running


def test_a_head_that_comes_slowly_is_ended(server: Served) -> None:
    with server.connect() as connection:
        connection.settimeout(0.05)
        began = time.monotonic()
        data = b""
        for byte in b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"x" * 10_000:
            try:
                connection.sendall(bytes([byte]))
                data = connection.recv(1000)
                break
            except TimeoutError:
                assert time.monotonic() - began < PATIENCE
        assert data.startswith(b"HTTP/1.1 408 ")


def test_a_client_that_says_nothing_is_let_go(server: Served) -> None:
    with server.connect() as connection:
        assert read_answer(connection).status == 408
        assert read(connection) == b""


def test_the_time_of_a_head_is_each_request_s_own(server: Served) -> None:
    with server.connect() as connection:
        for _ in range(5):
            connection.sendall(b"GET /v1/x HTTP/1.1\r\n")
            time.sleep(0.2)
            connection.sendall(b"host: localhost\r\n\r\n")
            assert read_answer(connection).status == 200
        connection.sendall(b"GET /v1/x HTTP/1.1\r\n")
        assert read_answer(connection).status == 408


def test_a_client_that_does_not_read_is_let_go(server: Served) -> None:
    ended = server.app.ended.count("/flood")
    with server.connect(receive_buffer=4096) as connection:
        connection.sendall(head("GET", "/flood", host="localhost"))
        server.until(lambda: server.app.ended.count("/flood") == ended + 1)
        server.until(lambda: not server.server.server_state.connections)


def test_a_client_that_reads_slowly_is_served(server: Served) -> None:
    """Pauses shorter than the limit are no reason to end what takes longer than it."""
    with server.connect(receive_buffer=65536) as connection:
        connection.sendall(head("GET", "/flood", host="localhost"))
        began, size = time.monotonic(), 0
        while time.monotonic() - began < 1.2:
            data = read(connection)
            assert data, size
            size += len(data)
            time.sleep(0.05)


def test_too_many_requests_at_once() -> None:
    with served(ServeSettings(port=0, limits=Limits(most_connections=3))) as server:
        waiting = [server.connect() for _ in range(3)]
        for connection in waiting:
            connection.sendall(head("POST", "/wait", 2, host="localhost") + b"{}")
        server.until(lambda: server.app.calls.count("/wait") == 3)
        answer = server.request("GET", "/v1/models")
        assert (answer.status, answer.error["code"]) == (429, "overloaded")
        assert answer.headers["retry-after"] == "1"
        assert server.request("GET", "/health/live").status == 200
        for connection in waiting:
            connection.close()
        server.until(lambda: server.request("GET", "/v1/models").status == 200)


def test_too_many_connections_at_once() -> None:
    with served(ServeSettings(port=0, limits=Limits(most_connections=2))) as server:
        silent = [server.connect() for _ in range(2 + RESERVED)]
        server.until(lambda: len(server.server.server_state.connections) == 2 + RESERVED)
        with server.connect() as connection:
            assert read_answer(connection).status == 503
        for connection in silent:
            connection.close()
        server.until(lambda: server.request("GET", "/v1/models").status == 200)


@settings(max_examples=60)
@given(pieces=st.lists(st.one_of(PIECES, st.binary(max_size=40)), max_size=12), cut=st.booleans())
def test_no_bytes_break_it(server: Served, pieces: list[bytes], cut: bool) -> None:
    with server.connect() as connection:
        try:
            connection.sendall(b"".join(pieces))
            if cut:
                connection.shutdown(socket.SHUT_WR)
        except OSError:
            return
        heard = b""
        while data := read(connection):
            heard += data
    assert b" 500 " not in heard
    assert heard == b"" or heard.startswith((b"HTTP/1.1 ", b"HTTP/1.0 "))


def test_nothing_is_left_of_them(server: Served) -> None:
    server.until(lambda: not server.server.server_state.connections and not server.server.server_state.tasks)
