"""Bodies that are too large, too slow, too many, or left unread; clients that leave."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from aiasst.serve.settings import Limits, ServeSettings
from tests.serve.guard.served import PATIENCE, Served, head, read, read_answer, served

MOST = 100_000


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(ServeSettings(port=0, limits=Limits(most_body_bytes=MOST, body_seconds=0.5))) as running:
        yield running


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def chunked(path: str) -> bytes:
    return head("POST", path, host="localhost", transfer_encoding="chunked")


def test_the_largest_body_is_taken(server: Served) -> None:
    assert server.request("POST", "/v1/x", b"x" * MOST).said["size"] == MOST
    assert server.say(chunked("/v1/x"), chunk(b"x" * MOST), b"0\r\n\r\n").said["size"] == MOST


def test_an_announced_giant_is_refused_without_reading(server: Served) -> None:
    seen = len(server.app.calls)
    for length in (MOST + 1, 10**15):
        answer = server.say(head("POST", "/v1/x", length, host="localhost"))
        assert (answer.status, answer.error["code"]) == (413, "too_large")
        assert answer.headers["connection"] == "close"
    assert len(server.app.calls) == seen
    assert server.say(head("POST", "/v1/x", 10**25, host="localhost")).status == 400


def test_a_client_that_waits_for_leave_is_not_given_it(server: Served) -> None:
    answer = server.say(head("POST", "/v1/x", MOST + 1, host="localhost", expect="100-continue"))
    assert answer.status == 413


@pytest.mark.parametrize("path", ["/v1/x", "/swallow"])
def test_a_giant_in_chunks_is_refused_at_the_limit(server: Served, path: str) -> None:
    with server.connect() as connection:
        connection.sendall(chunked(path))
        sent = 0
        try:
            while sent < 100 * MOST:
                connection.sendall(chunk(b"x" * 10_000))
                sent += 10_000
        except OSError:
            pass
        # The rest lay in buffers of the system on both sides.
        assert sent < 100 * MOST
    # Who stops when it is told reads why, even though it had sent more.
    with server.connect() as connection:
        connection.sendall(chunked(path))
        for _ in range(15):
            connection.sendall(chunk(b"x" * 10_000))
        answer = read_answer(connection)
        assert (answer.status, answer.error["code"]) == (413, "too_large")
        assert read(connection) == b""


@pytest.mark.parametrize("path", ["/v1/x", "/swallow"])
def test_a_slow_body_is_ended(server: Served, path: str) -> None:
    with server.connect() as connection:
        connection.sendall(head("POST", path, 1000, host="localhost"))
        began = time.monotonic()
        connection.settimeout(0.05)
        while time.monotonic() - began < PATIENCE:
            try:
                connection.sendall(b"x")
                connection.recv(1, socket.MSG_PEEK)
                break
            except TimeoutError:
                continue
        answer = read_answer(connection)
        assert (answer.status, answer.error["code"]) == (408, "too_slow")
        assert answer.headers["connection"] == "close"


def test_an_answer_to_an_unread_body_ends_the_connection(server: Served) -> None:
    """Else the body would be read as the next request, or for ever."""
    with server.connect() as connection:
        connection.sendall(chunked("/unread") + chunk(b"GET /smuggled HTTP/1.1\r\n\r\n"))
        answer = read_answer(connection)
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert read(connection) == b""
    assert "/smuggled" not in server.app.calls


def test_one_connection_serves_one_request_after_another(server: Served) -> None:
    with server.connect() as connection:
        for number in range(3):
            connection.sendall(head("POST", f"/v1/{number}", 2, host="localhost") + b"{}")
            answer = read_answer(connection)
            assert (answer.status, answer.said["path"]) == (200, f"/v1/{number}")
            assert "connection" not in answer.headers


def test_bodies_in_memory_are_bounded_together() -> None:
    limits = Limits(most_body_bytes=MOST, body_seconds=PATIENCE)
    with served(ServeSettings(port=0, limits=limits)) as server:
        connections = [server.connect() for _ in range(18)]
        for connection in connections:
            connection.sendall(head("POST", "/v1/x", MOST, host="localhost") + b"x" * (MOST - 1))
        server.until(lambda: len(server.told.reasons) >= 2)
        for connection in connections:
            try:
                connection.sendall(b"x")
            except OSError:
                continue
        answers = [read_answer(connection) for connection in connections]
        assert {answer.status for answer in answers} == {200, 429}
        assert [answer.status for answer in answers].count(429) == 2
        assert all(answer.headers["retry-after"] == "1" for answer in answers if answer.status == 429)
        for connection in connections:
            connection.close()
        # All of it was given back.
        assert server.request("POST", "/v1/x", b"x" * MOST).status == 200


def test_a_client_that_leaves_in_the_midst_of_its_body(server: Served) -> None:
    ended = len(server.app.ended)
    for half in (True, False):
        with server.connect() as connection:
            connection.sendall(head("POST", "/v1/x", 1000, host="localhost") + b"x" * 10)
            if half:
                connection.shutdown(socket.SHUT_WR)
                assert read(connection) == b""
        ended += 1
        server.until(lambda: len(server.app.ended) == ended)  # noqa: B023
    assert server.request("GET", "/v1/x").status == 200


def test_a_client_that_leaves_while_it_is_answered(server: Served) -> None:
    ended = server.app.ended.count("/wait")
    with server.connect() as connection:
        connection.sendall(head("POST", "/wait", 2, host="localhost") + b"{}")
        server.until(lambda: "/wait" in server.app.calls)
        connection.shutdown(socket.SHUT_WR)
        server.until(lambda: server.app.ended.count("/wait") == ended + 1)
