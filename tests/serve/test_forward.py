"""What goes to a peer, and what happens where the peer breaks off: a socket that answers a few bytes stands in for it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aiasst.serve.forward import MARK, Forward

BODY = b'{"model": "story", "prompt": "hello"}'
BROKEN_OFF = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n"
WHOLE = BROKEN_OFF + b"0\r\n\r\n"


class Crowded:
    def crowded(self, model: str) -> bool:
        return True


async def here(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "http.response.start", "status": 299, "headers": []})
    await send({"type": "http.response.body", "body": b"here"})


async def forwarded(answer: bytes, *, peers: int = 2) -> tuple[list[bytes], list[dict[str, Any]]]:
    """What `peers` peers that answer so were asked, and what the client got."""
    asked: list[bytes] = []
    sent: list[dict[str, Any]] = []
    come = iter([{"type": "http.request", "body": BODY, "more_body": False}])

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n") + await reader.readexactly(len(BODY)))
        writer.write(answer)
        await writer.drain()
        writer.close()

    async def receive() -> dict[str, Any]:
        message = next(come, None)
        if message is None:
            await asyncio.Event().wait()
        assert message is not None
        return message

    async def send(message: Any) -> None:
        sent.append(message)

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as peer:
        port = peer.sockets[0].getsockname()[1]
        forward = Forward(here, Crowded(), [f"http://127.0.0.1:{port}"] * peers)
        headers = [
            (b"host", b"one"),
            (b"origin", b"http://one"),
            (b"authorization", b"Bearer key"),
            (b"x-request-id", b"a"),
        ]
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers}
        await asyncio.wait_for(forward(scope, receive, send), 60)
        await forward._client.aclose()
    return asked, sent


def test_a_request_goes_along_with_its_key_and_without_its_page() -> None:
    asked, sent = asyncio.run(forwarded(WHOLE))
    (request,) = asked
    assert request.endswith(BODY)
    assert b"authorization: Bearer key\r\n" in request
    assert f"{MARK}: 1\r\n".encode() in request
    assert b"origin" not in request
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body", "http.response.body"]
    assert not sent[-1]["more_body"]


def test_an_answer_that_is_broken_off_is_not_asked_for_again() -> None:
    asked, sent = asyncio.run(forwarded(BROKEN_OFF))
    assert len(asked) == 1
    # No end: so the server ends the connection, and the client knows that something is missing.
    assert [message.get("more_body") for message in sent] == [None, True]


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n"])
def test_where_no_peer_takes_it_it_is_answered_here(answer: bytes) -> None:
    asked, sent = asyncio.run(forwarded(answer))
    assert len(asked) == 2
    assert (sent[0]["status"], sent[1]["body"]) == (299, b"here")
