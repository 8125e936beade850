"""All protocols over the real service with the story model: one greedy answer, whichever way it is asked for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
import pytest
from websockets.asyncio.client import connect

from aiasst.artifacts.model_folder import ModelFolder
from aiasst.artifacts.shipped import default_model
from aiasst.serve import rpc
from aiasst.serve.app import application
from aiasst.serve.guard import Gate
from aiasst.serve.models.hub import Hub, Served
from aiasst.serve.rpc import aiasst_pb2 as pb
from aiasst.serve.rpc.aiasst_pb2_grpc import AssistantStub
from aiasst.serve.settings import Limits, ServeSettings
from aiasst.serve.telemetry.metrics import Metrics
from tests.serve.serving import served

KEY = {"authorization": "Bearer a-key-of-anna"}
METADATA = tuple(KEY.items())
SETTINGS = ServeSettings(
    grpc_port=0, keys={"anna": "a-key-of-anna"}, limits=Limits(most_running=2, most_waiting=1), page=False
)
PROMPT = "Once upon a time there was a little"
GREEDY = {"max_tokens": 24, "temperature": 0}
PARAMS = pb.Params(max_tokens=24, temperature=0)


@dataclass
class Ways:
    """Clients of all protocols."""

    port: int
    http: httpx.AsyncClient
    stub: Any
    hub: Hub

    async def say(self, *messages: object) -> list[dict[str, Any]]:
        """What a WebSocket answers, up to the end of the first answer."""
        address = f"ws://127.0.0.1:{self.port}/v1/stream"
        async with connect(address, proxy=None, additional_headers=KEY) as client:
            for message in messages:
                await client.send(json.dumps(message))
            heard: list[dict[str, Any]] = [{}]
            while not {"finish_reason", "error"} & heard[-1].keys():
                heard.append(json.loads(await client.recv()))
            return heard[1:]


@asynccontextmanager
async def all_ways() -> AsyncIterator[Ways]:
    hub = Hub([Served("story", ModelFolder.open(default_model()))], limits=SETTINGS.limits)
    gate = Gate(SETTINGS)
    app = application(hub, Metrics(SETTINGS.keys), SETTINGS, gate)
    async with served(app, lifespan="on") as port:
        server = await rpc.start(SETTINGS, hub, gate.caller)
        async with (
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=KEY, timeout=60, trust_env=False) as http,
            grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
        ):
            try:
                yield Ways(port, http, AssistantStub(channel), hub)
            finally:
                await server.stop(None)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as made:
        yield made


def test_the_greedy_answer_is_the_same_over_every_protocol(runner: asyncio.Runner) -> None:
    async def work() -> None:
        async with all_ways() as ways:
            completion = await ways.http.post("/v1/completions", json={"prompt": PROMPT, "model": "story", **GREEDY})
            usage = completion.json()["usage"]
            texts = {"completion": completion.json()["choices"][0]["text"]}
            whole = (await ways.http.post("/v1/query", json={"query": PROMPT, "params": GREEDY})).json()
            texts["query"] = whole["answer"]
            streamed = await ways.http.post("/v1/query", json={"query": PROMPT, "params": GREEDY, "stream": True})
            events = [json.loads(line.removeprefix("data: ")) for line in streamed.text.splitlines() if line]
            texts["events"] = "".join(event["text"] for event in events)
            for form in ("prompt", "query"):
                heard = await ways.say({"id": 1, form: PROMPT, "params": GREEDY})
                texts[f"socket {form}"] = "".join(message["text"] for message in heard)
            generate = pb.GenerateRequest(prompt=PROMPT, params=PARAMS)
            query = pb.QueryRequest(query=PROMPT, params=PARAMS)
            texts["Generate"] = (await ways.stub.Generate(generate, metadata=METADATA)).text
            texts["Query"] = (await ways.stub.Query(query, metadata=METADATA)).text
            for name, request in (("GenerateStream", generate), ("QueryStream", query)):
                pieces = [piece async for piece in getattr(ways.stub, name)(request, metadata=METADATA)]
                texts[name] = "".join(piece.text for piece in pieces)
            assert len(texts["completion"]) > 24
            assert len(set(texts.values())) == 1, texts
            assert len(events) > 2
            assert whole["finish_reason"] == "length"
            for told in (whole["usage"], events[-1]["usage"], heard[-1]["usage"]):
                assert (told["prompt_tokens"], told["completion_tokens"]) == (usage["prompt_tokens"], 24)
            assert pieces[-1].usage.completion_tokens == 24

    runner.run(asyncio.wait_for(work(), 120))


def test_every_protocol_says_the_same_of_what_it_refuses(runner: asyncio.Runner) -> None:
    """What the engine itself finds wrong, once the request has come that far."""

    async def work() -> None:
        async with all_ways() as ways:
            wrong = {"json_schema": {"type": "nothing"}}
            told = (await ways.http.post("/v1/query", json={"query": PROMPT, "params": wrong})).json()["error"]
            assert "JSON schema" in told["message"]
            (heard,) = await ways.say({"id": 1, "query": PROMPT, "params": wrong})
            assert heard["error"] == told
            params = pb.Params(json_schema='{"type": "nothing"}')
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ways.stub.Query(pb.QueryRequest(query=PROMPT, params=params), metadata=METADATA)
            assert caught.value.details() == told["message"]
            assert (
                await ways.http.post("/v1/query", json={"query": PROMPT}, headers={"authorization": ""})
            ).status_code == 401
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ways.stub.Query(pb.QueryRequest(query=PROMPT))
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED

    runner.run(asyncio.wait_for(work(), 120))


def test_cancelled_and_abandoned_answers_free_their_places(runner: asyncio.Runner) -> None:
    """Two may run and one may wait: if one were not freed, the answers at the end would be refused."""
    long = {"max_tokens": 900, "temperature": 0}

    async def work() -> None:
        async with all_ways() as ways:
            ask = {"id": 1, "prompt": PROMPT, "params": long}
            heard = await ways.say(ask, {"cancel": 1})
            assert heard[-1]["finish_reason"] == "cancelled"
            request = pb.GenerateRequest(prompt=PROMPT, params=pb.Params(max_tokens=900, temperature=0))
            for _ in range(2):
                stream = ways.stub.GenerateStream(request, metadata=METADATA)
                assert (await stream.read()).text
                stream.cancel()
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await ways.stub.Generate(request, metadata=METADATA, timeout=0.2)
                assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
                with pytest.raises(httpx.ReadTimeout):
                    await ways.http.post("/v1/query", json={"query": PROMPT, "params": long}, timeout=0.2)
            while (state := ways.hub.model("story")).running or state.waiting:
                await asyncio.sleep(0.01)
            short = {"query": PROMPT, "params": {"max_tokens": 2}}
            assert (await ways.http.post("/v1/query", json=short)).status_code == 200

    runner.run(asyncio.wait_for(work(), 120))
