"""The compact form over REST: whole, as server-sent events, refused, and with clients that go."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from aiasst.serve.refusals import Refusal
from aiasst.serve.service import Caller
from aiasst.serve.settings import Limits
from tests.serve.fakes import FakeService
from tests.serve.serving import application, run, served

USAGE = {"prompt_tokens": 3, "cached_tokens": 1, "completion_tokens": 2}


@asynccontextmanager
async def client_of(service: FakeService) -> AsyncIterator[httpx.AsyncClient]:
    """A client without a server between."""
    transport = httpx.ASGITransport(application(service, Limits()))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


def post(service: FakeService, body: object) -> httpx.Response:
    async def work() -> httpx.Response:
        async with client_of(service) as client:
            return await client.post("/v1/query", json=body)

    return run(work())


def events_of(text: str) -> list[tuple[str, Any]]:
    """(event, data) of each; a client's reading of the format."""
    found = []
    for block in text.split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        found.append((fields.get("event", "message"), json.loads(fields["data"])))
    return found


def test_an_answer_is_whole() -> None:
    service = FakeService()
    response = post(service, {"query": "one two three", "params": {"max_tokens": 2, "temperature": 0, "stop": "."}})
    assert response.status_code == 200
    assert response.json() == {"answer": "three two ", "model": "story", "finish_reason": "length", "usage": USAGE}
    ((model, request, caller),) = service.asked
    assert (model, request.prompt, caller) == ("story", "one two three", Caller())
    assert (request.sampling.temperature, request.stop) == (0, (".",))


def test_context_reaches_the_model_by_its_template_or_without() -> None:
    service = FakeService()
    for model in ("chat", "story"):
        body = {"query": "where?", "context": ["here", "there"], "model": model}
        assert post(service, body).json()["model"] == model
    chat, story = (request for _, request, _ in service.asked)
    assert chat.messages is not None
    assert "Passage 2:\n```\nthere\n```" in chat.messages[0].content
    assert story.prompt == "[1] here\n\n[2] there\n\nwhere?"


def test_log_probabilities_are_told_where_they_are_asked_for() -> None:
    answer = post(FakeService(), {"query": "one two", "params": {"logprobs": 1}}).json()
    assert [token["text"] for token in answer["logprobs"]] == ["two", "one"]
    assert answer["logprobs"][0]["top"][1] == {"id": 0, "text": "?", "logprob": -1.5}


def test_a_stream_is_server_sent_events() -> None:
    response = post(FakeService(), {"query": "one two three", "params": {"max_tokens": 2}, "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert events_of(response.text) == [
        ("message", {"text": "three "}),
        ("message", {"text": "two "}),
        ("message", {"text": "", "model": "story", "finish_reason": "length", "usage": USAGE}),
    ]


def test_a_line_break_in_an_answer_does_not_break_an_event() -> None:
    class Lines(FakeService):
        async def _answer(self, request: Any) -> AsyncIterator[Any]:  # type: ignore[override]
            async for event in super()._answer(request):
                yield type(event)(event.request_id, "a\n\ndata: b\r\u2028", event.finished, event.usage)

    response = post(Lines(), {"query": "one", "stream": True})
    assert [data["text"] for _, data in events_of(response.text)] == ["a\n\ndata: b\r\u2028"] * 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_has_its_status_also_for_a_stream(stream: bool) -> None:
    refusal = Refusal("overloaded", "too much to do", "ask later", retry_after=2)
    response = post(FakeService(refuse=refusal), {"query": "one", "stream": stream})
    assert response.status_code == 429
    assert response.json()["error"]["code"] == "overloaded"


def test_a_refusal_on_the_way_is_an_event() -> None:
    refusal = Refusal("stopping", "the service stops", "ask again")
    response = post(FakeService(refuse=refusal, refuse_after=1), {"query": "one two", "stream": True})
    assert response.status_code == 200
    assert events_of(response.text) == [
        ("message", {"text": "two "}),
        (
            "error",
            {
                "error": {
                    "message": "the service stops; ask again",
                    "type": "server_error",
                    "param": None,
                    "code": "stopping",
                }
            },
        ),
    ]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"query": ""}, "the query is empty"),
        ({"query": "a", "model": "nobody"}, "no model 'nobody'"),
        ({"query": "a", "params": {"temperature": -1}}, "temperature is -1"),
        ({"query": "a", "params": {"regex": "a", "grammar": "b"}}, "not 'regex' and 'grammar'"),
        ({}, "missing required parameter: query"),
        ({"query": 1}, "valid string"),
        ({"query": "a", "context": "b"}, "context"),
        ({"query": "a", "questions": []}, "unrecognized request argument: questions"),
        ({"query": "a", "params": {"max_tokens": "5"}}, "valid integer"),
        ([], "valid dictionary"),
    ],
)
def test_a_wrong_request_says_what_is_wrong(body: object, words: str) -> None:
    service = FakeService()
    response = post(service, body)
    assert 400 <= response.status_code < 500
    assert words in response.text
    assert service.asked == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("query", ["wait", "endless"])
def test_a_client_that_goes_ends_its_work(stream: bool, query: str) -> None:
    async def work() -> None:
        service = FakeService()
        async with served(application(service, Limits())) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            body = json.dumps({"query": query, "stream": stream}).encode()
            head = (
                f"POST /v1/query HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
            )
            writer.write(head.encode() + b"\r\n\r\n" + body)
            while not service.asked:
                await asyncio.sleep(0.01)
            if stream and query == "endless":
                assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
            assert service.under_way == 1
            writer.transport.abort()
            await service.ended.wait()
            assert service.under_way == 0

    run(work())


def test_the_openapi_of_the_route_names_its_fields() -> None:
    described = application(FakeService(), Limits()).openapi()
    route = described["paths"]["/v1/query"]["post"]
    name = route["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    assert set(described["components"]["schemas"][name]["properties"]) == {
        "query",
        "context",
        "params",
        "model",
        "stream",
    }
    assert set(route["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
