"""The WebSocket with a real client: several answers at once, cancellation, nonsense, giants, clients that do not read or go."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from aiasst.serve import stream
from aiasst.serve.refusals import Refusal
from aiasst.serve.service import Caller
from aiasst.serve.settings import Limits
from tests.serve.fakes import FakeService
from tests.serve.serving import application, run, served

SMALL = Limits(most_body_bytes=5000)


@asynccontextmanager
async def connected(
    service: FakeService, limits: Limits = SMALL, app: Any = None, **options: Any
) -> AsyncIterator[ClientConnection]:
    async with (
        served(app or application(service, limits), ws_max_size=10 * limits.most_body_bytes) as port,
        # A client that has stopped to read does not wait for the server's farewell.
        connect(f"ws://127.0.0.1:{port}/v1/stream", proxy=None, close_timeout=0.2, **options) as client,
    ):
        yield client


async def ask(client: ClientConnection, message: object) -> None:
    await client.send(json.dumps(message))


async def hear(client: ClientConnection) -> dict[str, Any]:
    heard = json.loads(await client.recv())
    assert isinstance(heard, dict)
    return heard


async def answer(client: ClientConnection, request_id: object) -> list[dict[str, Any]]:
    """The messages up to the end of this answer; there are no others."""
    heard = [await hear(client)]
    while "finish_reason" not in heard[-1] and "error" not in heard[-1]:
        heard.append(await hear(client))
    assert {message["id"] for message in heard} == {request_id}
    return heard


def test_tokens_come_as_messages_and_the_last_tells_the_usage() -> None:
    async def work() -> None:
        service = FakeService()
        async with connected(service) as client:
            await ask(client, {"id": "a", "prompt": "one two three", "params": {"max_tokens": 2, "temperature": 0}})
            assert await answer(client, "a") == [
                {"id": "a", "text": "three "},
                {"id": "a", "text": "two "},
                {
                    "id": "a",
                    "text": "",
                    "model": "story",
                    "finish_reason": "length",
                    "usage": {"prompt_tokens": 3, "cached_tokens": 1, "completion_tokens": 2},
                },
            ]
        assert service.asked[0][1].sampling.temperature == 0

    run(work())


def test_messages_and_queries_are_asked_in_the_same_way() -> None:
    async def work() -> None:
        service = FakeService()
        async with connected(service) as client:
            await ask(client, {"id": 1, "model": "chat", "messages": [{"role": "user", "content": "hello you"}]})
            heard = await answer(client, 1)
            assert [message["text"] for message in heard] == ["you ", "<user>hello ", ""]
            await ask(client, {"id": 2, "query": "where?", "context": ["here"], "params": {"logprobs": 1}})
            heard = await answer(client, 2)
            assert heard[0]["logprobs"][0]["text"] == "where?"
        assert service.asked[1][1].prompt == "[1] here\n\nwhere?"

    run(work())


def test_several_answers_at_once_and_one_of_them_is_cancelled() -> None:
    async def work() -> None:
        service = FakeService()
        async with connected(service) as client:
            await ask(client, {"id": "slow", "prompt": "wait"})
            assert await hear(client) == {"id": "slow", "text": "well"}
            for number in range(20):
                await ask(client, {"id": number, "prompt": f"a b {number}"})
            texts: dict[object, str] = {}
            ended = 0
            while ended < 20:
                message = await hear(client)
                texts[message["id"]] = texts.get(message["id"], "") + message["text"]
                ended += "finish_reason" in message
            assert texts == {number: f"{number} b a " for number in range(20)}
            assert service.under_way == 1
            await ask(client, {"cancel": "slow"})
            assert await hear(client) == {"id": "slow", "text": "", "model": "story", "finish_reason": "cancelled"}
            assert service.under_way == 0
            # It has ended: nothing to say. And its id is free again.
            await ask(client, {"cancel": "slow"})
            await ask(client, {"id": "slow", "prompt": "again"})
            assert (await answer(client, "slow"))[0]["text"] == "again "

    run(work())


def test_a_request_may_be_cancelled_before_it_has_begun() -> None:
    async def work() -> None:
        service = FakeService()
        async with connected(service) as client:
            for number in range(5):
                # In one piece, so that the server reads both at once.
                async with asyncio.TaskGroup() as both:
                    both.create_task(ask(client, {"id": number, "prompt": "wait"}))
                    both.create_task(ask(client, {"cancel": number}))
                assert (await answer(client, number))[-1]["finish_reason"] == "cancelled"
            assert service.under_way == 0

    run(work())


def test_a_refusal_is_a_message_and_the_socket_goes_on() -> None:
    async def work() -> None:
        service = FakeService(refuse=Refusal("queue_full", "256 requests wait", "ask later", retry_after=2.5))
        async with connected(service) as client:
            await ask(client, {"id": 1, "prompt": "a"})
            error = {
                "message": "256 requests wait; ask later",
                "type": "rate_limit_error",
                "param": None,
                "code": "queue_full",
                "retry_after": 2.5,
            }
            assert await hear(client) == {"id": 1, "error": error}
            service.refuse_after = 1
            await ask(client, {"id": 1, "prompt": "a b"})
            assert [list(message) for message in await answer(client, 1)] == [["id", "text"], ["id", "error"]]
            service.refuse = None
            await ask(client, {"id": 1, "prompt": "a"})
            assert (await answer(client, 1))[0]["text"] == "a "

    run(work())


@pytest.mark.parametrize(
    ("text", "request_id", "words"),
    [
        ("{", None, "not valid JSON"),
        ("[1]", None, "no JSON object"),
        ("[" * 4000, None, "nested too deeply"),
        ('{"prompt": "a"}', None, "has no id"),
        ('{"id": true, "prompt": "a"}', None, "an id is"),
        ('{"id": "' + "x" * 300 + '", "prompt": "a"}', None, "at most 256"),
        ('{"id": 1, "prompt": "\\ud800"}', None, "not UTF-8"),
        ('{"id": 1, "prompt": "a", "params": {"temperature": NaN}}', None, "NaN"),
        ('{"cancel": 1, "prompt": "a"}', None, "cancels says nothing else"),
        ('{"cancel": [1]}', None, "an id is"),
        ('{"id": 1}', 1, "one of 'query', 'messages' and 'prompt'"),
        ('{"id": 1, "prompt": "a", "query": "b"}', 1, "one of 'query', 'messages' and 'prompt'"),
        ('{"id": 1, "prompt": "a", "context": ["b"]}', 1, "'context' belongs to a 'query'"),
        ('{"id": 1, "query": " "}', 1, "the query is empty"),
        ('{"id": 1, "prompt": 3}', 1, "'prompt'"),
        ('{"id": 1, "prompt": "a", "params": {"top_n": 3}}', 1, "unknown key 'params.top_n'"),
        ('{"id": 1, "prompt": "a", "params": {"temperature": -1}}', 1, "temperature is -1"),
        ('{"id": 1, "prompt": "a", "params": {"deadline_seconds": 0}}', 1, "deadline_seconds is 0"),
        ('{"id": 1, "prompt": "a", "model": "nobody"}', 1, "no model 'nobody'"),
    ],
)
def test_what_is_no_request_is_answered_with_an_error(text: str, request_id: object, words: str) -> None:
    async def work() -> None:
        async with connected(FakeService()) as client:
            await client.send(text)
            heard = await hear(client)
            assert heard["id"] == request_id
            assert words in heard["error"]["message"]
            await ask(client, {"id": "next", "prompt": "a"})
            assert len(await answer(client, "next")) == 2

    run(work())


def test_an_id_that_is_under_way_is_refused_without_ending_its_answer() -> None:
    async def work() -> None:
        service = FakeService()
        async with connected(service) as client:
            await ask(client, {"id": 1, "prompt": "wait"})
            assert await hear(client) == {"id": 1, "text": "well"}
            await ask(client, {"id": 1, "prompt": "a"})
            heard = await hear(client)
            assert heard["id"] is None
            assert "1 is under way" in heard["error"]["message"]
            assert service.under_way == 1

    run(work())


def test_one_socket_has_so_many_answers_under_way_and_no_more() -> None:
    async def work() -> None:
        service = FakeService()
        async with connected(service) as client:
            for number in range(stream.MOST_AT_ONCE + 1):
                await ask(client, {"id": number, "prompt": "wait"})
            while "error" not in (heard := await hear(client)):
                pass
            assert (heard["id"], heard["error"]["code"]) == (stream.MOST_AT_ONCE, "queue_full")
            assert service.under_way == stream.MOST_AT_ONCE

    run(work())


async def closed_with(client: ClientConnection) -> int | None:
    with pytest.raises(ConnectionClosed):
        while True:
            await client.recv()
    return client.close_code


def test_a_binary_message_closes_with_1003() -> None:
    async def work() -> None:
        async with connected(FakeService()) as client:
            await client.send(b'{"id": 1, "prompt": "a"}')
            assert await closed_with(client) == 1003

    run(work())


def test_text_that_is_not_utf8_closes_with_1007() -> None:
    async def work() -> None:
        async with connected(FakeService(), compression=None) as client:
            client.protocol.send_frame(Frame(Opcode.TEXT, b'{"id": "\xff\xfe"}'))
            client.send_data()
            assert await closed_with(client) == 1007

    run(work())


@pytest.mark.parametrize("size", [SMALL.most_body_bytes, 100 * SMALL.most_body_bytes])
def test_a_giant_message_closes_with_1009(size: int) -> None:
    """The smaller one is found here, the larger one by the server before it has all of it; both were compressed."""

    async def work() -> None:
        service = FakeService()
        async with connected(service) as client:
            await ask(client, {"id": 1, "prompt": "a" * size})
            assert await closed_with(client) == 1009
        assert service.asked == []

    run(work())


def test_nothing_but_nonsense_closes_with_1008() -> None:
    async def work() -> None:
        async with connected(FakeService()) as client:
            for _ in range(stream.MOST_WRONG - 1):
                await client.send("nonsense")
            await ask(client, {"id": 1, "prompt": "a"})  # one that makes sense begins the count anew
            for _ in range(stream.MOST_WRONG):
                await client.send("nonsense")
            assert await closed_with(client) == 1008

    run(work())


def test_a_fault_in_the_service_closes_with_1011() -> None:
    class Broken(FakeService):
        def model(self, name: str) -> Any:
            raise KeyError(name)

    async def work() -> None:
        async with connected(Broken()) as client:
            await ask(client, {"id": 1, "prompt": "a"})
            assert await closed_with(client) == 1011

    run(work())


def test_a_closed_socket_cancels_its_requests() -> None:
    async def work() -> None:
        service = FakeService()
        async with served(application(service, SMALL)) as port:
            async with connect(f"ws://127.0.0.1:{port}/v1/stream", proxy=None) as client:
                for number in range(3):
                    await ask(client, {"id": number, "prompt": "wait"})
                while service.under_way < 3:
                    await asyncio.sleep(0.01)
            await all_ended(service)

    run(work())


async def all_ended(service: FakeService) -> None:
    while service.under_way:
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("prompt", ["wait", "endless"])
def test_a_client_that_goes_without_a_word_cancels_its_requests(prompt: str) -> None:
    async def work() -> None:
        service = FakeService()
        async with connected(service) as client:
            await ask(client, {"id": 1, "prompt": prompt})
            while not service.asked:
                await asyncio.sleep(0.01)
            client.transport.abort()
            await all_ended(service)

    run(work())


def test_half_a_socket_is_none() -> None:
    """A client that closes its sending side only, in the middle of a frame, is gone."""

    async def work() -> None:
        service = FakeService()
        async with connected(service, compression=None) as client:
            await ask(client, {"id": 1, "prompt": "wait"})
            while not service.asked:
                await asyncio.sleep(0.01)
            client.transport.write(b"\x81\xfe\x10")  # a text of which even the length is missing
            client.transport.write_eof()
            await all_ended(service)

    run(work())


def test_a_client_that_does_not_read_holds_its_answers_back() -> None:
    async def work() -> None:
        service = FakeService()
        async with connected(service, compression=None, max_queue=1) as client:
            for number in range(3):
                await ask(client, {"id": number, "prompt": "endless"})
            await hear(client)
            # The client's queue is full, then the buffers of both sides are.
            before = -1
            while service.yielded != before:
                before = service.yielded
                await asyncio.sleep(0.3)
            assert service.yielded < 2000  # of 10 kB each
            assert service.under_way == 3
            heard = [(await hear(client))["id"] for _ in range(2000)]  # it reads again: all of them go on
            assert set(heard) == {0, 1, 2}

    run(work())


def test_a_client_that_never_reads_ends_its_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "UNREAD_SECONDS", 0.2)

    async def work() -> None:
        service = FakeService()
        async with connected(service, compression=None, max_queue=1) as client:
            await ask(client, {"id": 1, "prompt": "endless"})
            await service.ended.wait()
            assert service.under_way == 0

    run(work())


def test_pings_are_answered_while_an_answer_is_under_way() -> None:
    async def work() -> None:
        async with connected(FakeService()) as client:
            await ask(client, {"id": 1, "prompt": "wait"})
            assert await asyncio.wait_for(await client.ping(b"are you there"), 10) >= 0

    run(work())


def test_the_guard_says_who_asks_and_counts_every_request_but_the_first() -> None:
    class Gate:
        def __init__(self) -> None:
            self.asked: list[tuple[Caller, str]] = []

        def admit(self, caller: Caller, address: str) -> None:
            self.asked.append((caller, address))
            if len(self.asked) > 1:
                raise Refusal("rate_limited", "more than 2 requests a minute", retry_after=9)

    gate = Gate()

    async def work() -> None:
        service = FakeService()
        inner = application(service, SMALL)

        async def guard(scope: Any, receive: Any, send: Any) -> None:
            scope["state"] = {"caller": Caller("anna"), "gate": gate}
            await inner(scope, receive, send)

        async with connected(service, app=guard) as client:
            for number in range(3):
                await ask(client, {"id": number, "prompt": "a"})
                heard = await answer(client, number)
            assert heard[0]["error"]["code"] == "rate_limited"
        assert [caller for _, _, caller in service.asked] == [Caller("anna")] * 2
        assert gate.asked == [(Caller("anna"), "127.0.0.1")] * 2

    run(work())


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["id", "cancel", "prompt", "messages", "query", "context", "params", "model", "x"])
MESSAGES = st.one_of(
    st.text(max_size=200),
    JSON.map(json.dumps),
    st.dictionaries(KEYS, JSON, max_size=4).map(json.dumps),
)


@settings(max_examples=15)
@given(st.lists(MESSAGES, max_size=40))
def test_nothing_that_a_client_says_hangs_or_breaks_the_socket(messages: list[str]) -> None:
    """Whatever comes, a sane request is answered afterwards, on this socket or, where it was closed for nonsense, on the next."""

    async def work() -> None:
        service = FakeService()
        async with served(application(service, SMALL)) as port:
            address = f"ws://127.0.0.1:{port}/v1/stream"
            async with connect(address, proxy=None) as client:
                try:
                    for message in messages:
                        await client.send(message)
                    await ask(client, {"id": "sane", "prompt": "a"})
                    while (await hear(client)).get("finish_reason") is None:
                        pass
                except ConnectionClosed:
                    assert client.close_code == 1008
            await all_ended(service)
            async with connect(address, proxy=None) as client:
                await ask(client, {"id": "sane", "prompt": "a"})
                assert (await answer(client, "sane"))[0]["text"] == "a "

    run(work())
