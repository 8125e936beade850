"""The whole service under misuse over REST, WebSocket and gRPC: no failure, nothing left behind, no word of a prompt in the log."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from aiasst.serve.rpc import aiasst_pb2 as pb
from aiasst.serve.rpc.aiasst_pb2_grpc import AssistantStub
from tests.serve.whole import KEY, PATIENCE, Whole, whole

SECRET = "xylophonist"
"""The word that no log may hold."""
METADATA = (("authorization", f"Bearer {KEY}"),)
LIMIT = 4 * 2**20
"""Bytes of a body."""
GROWTH = 32 * 2**20
"""Bytes that a process may have more after misuse: allocators keep some."""
SOUND: dict[str, dict[str, Any]] = {
    "/v1/completions": {"model": "chat", "prompt": SECRET, "max_tokens": 2},
    "/v1/chat/completions": {"model": "chat", "messages": [{"role": "user", "content": SECRET}], "max_tokens": 2},
    "/v1/responses": {"model": "chat", "input": SECRET, "max_output_tokens": 2},
    "/v1/embeddings": {"model": "chat", "input": SECRET},
    "/v1/query": {"model": "chat", "query": SECRET, "context": [SECRET], "params": {"max_tokens": 2}},
}
FIELDS = (
    "model",
    "prompt",
    "messages",
    "input",
    "query",
    "context",
    "params",
    "stop",
    "logit_bias",
    "user",
    "tools",
    "seed",
)
VALUES: tuple[Any, ...] = (
    "\ud800",
    "\0",
    "",
    SECRET * 2000,
    [],
    {},
    None,
    -1,
    10**30,
    1e400,
    [[]],
    [None],
    [SECRET, 1],
    {"a": {}},
)
BODIES = (
    b"",
    b"{",
    b"null",
    b'"text"',
    b"[" * 100_000,
    b'{"prompt":' * 50_000,
    b'{"prompt": "\xff\xfe ' + SECRET.encode() + b'"}',
    b'{"prompt": "' + SECRET.encode(),
    b"\xef\xbb\xbf{}",
    b"1" * 5000,
    b"NaN",
)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, chatty: Path) -> Iterator[Whole]:
    folder = tmp_path_factory.mktemp("misuse")
    with whole(folder, "--log-level", "debug", models=(f"chat={chatty}",)) as running:
        yield running
    log = running.written()
    assert "Shutting down" in log
    assert "Traceback" not in log, log[log.index("Traceback") :][:3000]
    for secret in (SECRET, KEY):
        place = log.find(secret)
        assert place < 0, log[max(0, place - 500) : place + 100]


def ask(client: httpx.Client, path: str, body: bytes) -> httpx.Response:
    return client.post(path, content=body, headers={"content-type": "application/json"})


@pytest.mark.parametrize("path", SOUND)
def test_no_body_is_a_failure(service: Whole, path: str) -> None:
    wrong = [json.dumps({**SOUND[path], field: value}).encode() for field in FIELDS for value in VALUES]
    with service.client() as client:
        for body in (*BODIES, *wrong):
            answer = ask(client, path, body)
            assert answer.status_code < 500, (body[:200], answer.text)
            if answer.status_code >= 400:
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}, body[:200]


def test_no_path_and_no_method_is_a_failure(service: Whole) -> None:
    paths = (
        "/v1/models/%ff",
        "/v1/models/%00",
        "/v1/models/" + "x" * 5000,
        "/v1/responses/%ff",
        "/page/%ff",
        "/%e2%80%ae",
        "/v1",
    )
    with service.client() as client:
        for path in (*paths, f"/v1/models?prompt={SECRET}", f"/v1/models?api_key={KEY}"):
            for method in ("GET", "POST", "DELETE", "HEAD", "OPTIONS", "TRACE", "PATCH", "NONSENSE"):
                assert client.request(method, path).status_code < 500, (method, path)


def open_socket(service: Whole, query: str = "") -> ClientConnection:
    headers = {"authorization": f"Bearer {KEY}"}
    url = f"ws://127.0.0.1:{service.port}/v1/stream{query}"
    return connect(url, additional_headers=headers, open_timeout=PATIENCE)


def test_no_message_of_a_websocket_is_a_failure(service: Whole) -> None:
    texts = [
        json.dumps({"id": 1, "prompt": SECRET, "params": {"max_tokens": 2}} | {field: value})
        for field in FIELDS
        for value in VALUES
    ]
    texts += [body.decode("utf-8", "ignore") for body in BODIES]
    texts += ['{"cancel": []}', '{"cancel": "\\ud800"}', '{"id": "\\ud800"}', '{"id": {}}', f'{{"id": "{SECRET}"}}']
    for text in texts:
        with open_socket(service) as connection:
            connection.send(text)
            connection.send(json.dumps({"id": "last", "prompt": SECRET, "params": {"max_tokens": 1}}))
            for message in connection:
                told = json.loads(message)
                if told["id"] == "last" and ("error" in told or "finish_reason" in told):
                    assert "error" not in told, text
                    break
            else:
                raise AssertionError(f"closed with {connection.close_code} after {text[:100]}")


def test_no_call_of_grpc_is_a_failure(service: Whole) -> None:
    calls = ("Generate", "GenerateStream", "Query", "QueryStream", "Embed", "ListModels", "Nonsense")
    wrong = (b"", b"\xff" * 100, b"\x0a\xff\xff\xff\xff\x0f", SECRET.encode(), b"\x12\x02\xff\xfe")
    with grpc.insecure_channel(f"127.0.0.1:{service.grpc_port}") as channel:
        for name in calls:
            for data in wrong:
                call = channel.unary_stream(f"/aiasst.v1.Assistant/{name}")
                with (
                    pytest.raises(grpc.RpcError) if data and name != "ListModels" else suppress(grpc.RpcError) as caught
                ):
                    list(call(data, metadata=METADATA, timeout=PATIENCE))
                if caught is not None and isinstance(caught.value, grpc.Call):
                    assert caught.value.code().name not in ("UNKNOWN", "INTERNAL", "DEADLINE_EXCEEDED"), (name, data)


def chunked_giant(service: Whole) -> None:
    with raw(service) as connection, suppress(OSError):
        connection.sendall(post("/v1/completions", b"transfer-encoding: chunked\r\n"))
        for _ in range(LIMIT // 2**16 + 20):
            connection.sendall(b"10000\r\n" + b"x" * 2**16 + b"\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def half_closed(service: Whole) -> None:
    with raw(service) as connection:
        body = json.dumps({"model": "chat", "prompt": SECRET, "stream": True, "max_tokens": 2000}).encode()
        connection.sendall(post("/v1/completions", b"content-length: %d\r\n" % len(body)) + body)
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(2**16):
            pass


def hung_up(service: Whole) -> None:
    """A reset in the midst of an answer, and one in the midst of a request."""
    body = json.dumps({"model": "chat", "prompt": SECRET, "max_tokens": 2000}).encode()
    for sent in (
        post("/v1/completions", b"content-length: %d\r\n" % len(body)) + body,
        post("/v1/query", b"content-length: 9\r\n"),
    ):
        with raw(service) as connection:
            connection.sendall(sent)
            time.sleep(0.05)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def sockets_hung_up(service: Whole) -> None:
    for last in (b"\x81\x82\0\0\0\0\xff\xfe", b"\xff", b"\x81\xff" + b"\xff" * 8, b""):
        with suppress(ConnectionClosed, OSError), open_socket(service, f"?prompt={SECRET}") as connection:
            connection.send(json.dumps({"id": 1, "prompt": SECRET, "params": {"max_tokens": 2000}}))
            connection.recv(PATIENCE)
            connection.socket.sendall(last)
            connection.socket.shutdown(socket.SHUT_RDWR)


def strangers(service: Whole) -> None:
    with pytest.raises(InvalidStatus):
        connect(
            f"ws://127.0.0.1:{service.port}/v1/stream", additional_headers={"authorization": "Bearer no"}
        ).__enter__()
    assert httpx.post(f"{service.url}/v1/completions", json={"prompt": SECRET}).status_code == 401
    with (
        grpc.insecure_channel(f"127.0.0.1:{service.grpc_port}") as channel,
        pytest.raises(grpc.RpcError, match="UNAUTH"),
    ):
        AssistantStub(channel).Generate(pb.GenerateRequest(prompt=SECRET), timeout=PATIENCE)


def calls_hung_up(service: Whole) -> None:
    with socket.create_connection(("127.0.0.1", service.grpc_port), PATIENCE) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 1000)
    with grpc.insecure_channel(f"127.0.0.1:{service.grpc_port}") as channel:
        wanted = pb.GenerateRequest(model="chat", prompt=SECRET, params=pb.Params(max_tokens=2000))
        pieces = AssistantStub(channel).GenerateStream(wanted, metadata=METADATA, timeout=PATIENCE)
        next(iter(pieces))
        pieces.cancel()
        giant = pb.GenerateRequest(model="chat", prompt="x" * (LIMIT + 1))
        with pytest.raises(grpc.RpcError, match="RESOURCE_EXHAUSTED"):
            AssistantStub(channel).Generate(giant, metadata=METADATA, timeout=PATIENCE)


MISUSE: tuple[Callable[[Whole], None], ...] = (
    chunked_giant,
    half_closed,
    hung_up,
    sockets_hung_up,
    strangers,
    calls_hung_up,
)


def raw(service: Whole) -> socket.socket:
    return socket.create_connection(("127.0.0.1", service.port), PATIENCE)


def post(path: str, headers: bytes) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n"
    )
    return head.encode() + headers + b"\r\n"


def idle(service: Whole) -> bool:
    with service.client() as client:
        return all(model["running"] == model["waiting"] == 0 for model in client.get("/v1/status").json()["models"])


def until(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.1)


def test_nothing_is_left_behind(service: Whole) -> None:
    sound = {"model": "chat", "prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}
    with service.client() as client:
        expected = client.post("/v1/completions", json=sound).json()["choices"]
    for round_ in range(5):
        if round_ == 2:
            # What is made once, and kept, has been made.
            until(lambda: idle(service), "requests go on whose clients have gone")
            before = service.held()
        for misuse in MISUSE:
            misuse(service)
    until(lambda: idle(service), "requests go on whose clients have gone")
    until(lambda: service.held().files <= before.files, "connections are left open")
    until(lambda: service.held().threads <= before.threads, "threads go on")
    assert service.held().memory <= before.memory + GROWTH
    with service.client() as client:
        assert client.post("/v1/completions", json=sound).json()["choices"] == expected


def test_prompts_are_logged_where_that_was_chosen(tmp_path: Path, chatty: Path) -> None:
    """So the word would be seen if it were written."""
    with whole(tmp_path, "--log-prompts", models=(f"chat={chatty}",)) as service:
        with service.client() as client:
            assert client.post("/v1/completions", json=SOUND["/v1/completions"]).status_code == 200
        until(lambda: SECRET in service.written(), "the prompt is not logged")
        assert KEY not in service.written()
