"""The key of a WebSocket, pages that may not open one, sizes and clients that leave."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from aiasst.serve.guard.sockets import key_of_message, key_of_subprotocols
from aiasst.serve.refusals import Refusal
from aiasst.serve.settings import Limits, ServeSettings
from tests.serve.guard.served import PATIENCE, Served, head, served

KEY = "anna-" + "a/+~" * 5 + "=="
ASSISTANT = Subprotocol("aiasst")


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    limits = Limits(body_seconds=0.5, most_body_bytes=5000, requests_per_minute=6000)
    with served(ServeSettings(port=0, keys={"anna": KEY}, limits=limits)) as running:
        yield running


def open_socket(server: Served, path: str = "/v1/stream", **options: Any) -> ClientConnection:
    return connect(f"ws://127.0.0.1:{server.port}{path}", open_timeout=PATIENCE, close_timeout=PATIENCE, **options)


def said(connection: ClientConnection) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(connection.recv(PATIENCE))
    return answer


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def as_subprotocol(key: str) -> Subprotocol:
    return Subprotocol("aiasst.key." + base64.urlsafe_b64encode(key.encode()).decode().rstrip("="))


def test_programs_send_a_header(server: Served) -> None:
    for headers in (bearer(KEY), {"X-API-Key": KEY}):
        with open_socket(server, additional_headers=headers) as connection:
            connection.send("hello")
            assert said(connection) == {"caller": "anna", "text": "hello", "offered": []}


def test_pages_offer_a_subprotocol(server: Served) -> None:
    with open_socket(server, subprotocols=[ASSISTANT, as_subprotocol(KEY)]) as connection:
        assert connection.subprotocol == "aiasst"
        connection.send("hello")
        # The application does not see the key.
        assert said(connection) == {"caller": "anna", "text": "hello", "offered": ["aiasst"]}


def test_or_they_send_it_first(server: Served) -> None:
    with open_socket(server) as connection:
        connection.send(json.dumps({"authorization": f"Bearer {KEY}"}))
        connection.send("hello")
        assert said(connection)["text"] == "hello"


@pytest.mark.parametrize(
    "first",
    [
        "hello",
        '{"authorization": "Bearer wrong"}',
        '{"authorization": ["Bearer"]}',
        '{"authorization": 1}',
        "[" * 2000,
        b"\x00",
        "",
        '{"authorization": "Bearer ' + "x" * 4500 + '"}',
    ],
)
def test_without_a_key_nothing_is_heard(server: Served, first: str | bytes) -> None:
    with open_socket(server) as connection:
        connection.send(first)
        with pytest.raises(ConnectionClosed) as caught:
            connection.recv(PATIENCE)
    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code == 1008


def test_who_brings_no_key_is_not_waited_for(server: Served) -> None:
    ended = len(server.app.ended)
    with open_socket(server) as connection:
        began = time.monotonic()
        with pytest.raises(ConnectionClosed) as caught:
            connection.recv(PATIENCE)
        assert time.monotonic() - began < PATIENCE
    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code == 1008
    server.until(lambda: len(server.app.ended) == ended + 1)


def test_a_wrong_key_is_refused_at_the_door(server: Served) -> None:
    wrong: list[dict[str, Any]] = [
        {"additional_headers": bearer("wrong")},
        {"subprotocols": [ASSISTANT, as_subprotocol("wrong")]},
        {"subprotocols": [ASSISTANT, Subprotocol("aiasst.key.!")]},
    ]
    for options in wrong:
        with pytest.raises(InvalidStatus) as caught:
            open_socket(server, **options)
        response = caught.value.response
        assert (response.status_code, json.loads(response.body or b"")["error"]["code"]) == (401, "invalid_api_key")
        assert "x-request-id" in response.headers


def test_foreign_pages_cannot_open_one(server: Served) -> None:
    for origin in ("http://evil.example", "null", f"https://localhost:{server.port + 1}"):
        with pytest.raises(InvalidStatus) as caught:
            open_socket(server, origin=origin, additional_headers=bearer(KEY))
        assert caught.value.response.status_code == 403
    with open_socket(server, origin=f"http://127.0.0.1:{server.port}", additional_headers=bearer(KEY)) as connection:
        connection.send("hello")
        assert said(connection)["caller"] == "anna"


def test_foreign_names_cannot_either() -> None:
    with served(ServeSettings(port=0)) as server:
        upgrade = {"upgrade": "websocket", "connection": "upgrade", "sec_websocket_version": "13"}
        key = {"sec_websocket_key": base64.b64encode(b"0" * 16).decode()}
        answer = server.say(head("GET", "/v1/stream", host="evil.example", **upgrade, **key))
        assert (answer.status, answer.error["code"]) == (403, "forbidden")
        answer = server.say(head("GET", "/v1/../stream", host="localhost", **upgrade, **key))
        assert answer.status == 400


def test_a_message_that_is_too_large_ends_it(server: Served) -> None:
    for message in ("x" * 5001, b"x" * 5001, "é" * 2501):
        with open_socket(server, additional_headers=bearer(KEY)) as connection:
            connection.send(message)
            with pytest.raises(ConnectionClosed) as caught:
                connection.recv(PATIENCE)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1009
    with open_socket(server, additional_headers=bearer(KEY)) as connection:
        connection.send(iter(["x" * 100] * 51))
        with pytest.raises(ConnectionClosed):
            connection.recv(PATIENCE)


def test_handshakes_are_counted() -> None:
    with served(ServeSettings(port=0, keys={"anna": KEY}, limits=Limits(requests_per_minute=4))) as server:
        for _ in range(2):
            with open_socket(server, additional_headers=bearer(KEY)):
                pass
        with pytest.raises(InvalidStatus) as caught:
            open_socket(server, additional_headers=bearer(KEY))
        assert caught.value.response.status_code == 429
        assert int(caught.value.response.headers["retry-after"]) >= 1
        with open_socket(server) as connection:
            connection.send(json.dumps({"authorization": f"Bearer {KEY}"}))
            with pytest.raises(ConnectionClosed) as closed:
                connection.recv(PATIENCE)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008


def test_frames_that_are_none(server: Served) -> None:
    ended = len(server.app.ended)
    frames = (
        b"\x81\x82\0\0\0\0\xff\xfe",
        b"\x81\x05hello",
        b"\xff\x00",
        b"\x81\xff" + b"\xff" * 8,
        b"\x00\x80\0\0\0\0",
    )
    for frame in frames:
        with open_socket(server, additional_headers=bearer(KEY)) as connection:
            connection.socket.sendall(frame)
            with pytest.raises(ConnectionClosed):
                connection.recv(PATIENCE)
    server.until(lambda: len(server.app.ended) == ended + len(frames))
    server.until(lambda: not server.server.server_state.connections and not server.server.server_state.tasks)


@given(st.text(max_size=60))
def test_no_first_message_breaks_it(text: str) -> None:
    assert key_of_message({"type": "websocket.receive", "text": text}) is None
    wrapped = key_of_message({"type": "websocket.receive", "text": json.dumps({"authorization": f"Bearer {text}"})})
    assert wrapped == (text.strip() or None)


@given(st.lists(st.text(max_size=20).map(lambda text: "aiasst.key." + text), max_size=3))
def test_no_subprotocol_breaks_it(offered: list[str]) -> None:
    try:
        key_of_subprotocols(offered)
    except Refusal as refusal:
        assert refusal.reason == "unauthorized"
