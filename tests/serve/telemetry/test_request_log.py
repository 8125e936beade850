import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient

from aiasst.engine.requests import Sampling
from aiasst.engine.text import TextRequest, Usage
from aiasst.serve.refusals import Refusal
from aiasst.serve.rest import errors
from aiasst.serve.service import Caller
from aiasst.serve.settings import LogSettings
from aiasst.serve.telemetry.logs import Logs
from aiasst.serve.telemetry.metrics import Metrics
from aiasst.serve.telemetry.request_log import LoggedWatch, PromptLog, RequestLog, logged
from tests.serve.states import StatedService, metrics_of

SECRET_TEXT = "the king has donkey ears"


def application(service: StatedService, *, prompts: bool = False) -> tuple[RequestLog, Metrics]:
    """Routes that do what protocols do: ask the service, tell the watch, stream."""
    app, metrics = FastAPI(), metrics_of(service, "ann")
    watch = LoggedWatch(metrics)
    asked = PromptLog(service) if prompts else service

    async def answer() -> AsyncIterator[str]:
        watch.began("talker", "ann")
        watch.first_token("talker", 0.0123)
        request = TextRequest("1", SECRET_TEXT, None, Sampling())
        async with aclosing(asked.generate("talker", request, Caller("ann"))) as events:
            async for event in events:
                watch.next_token("talker", 0.001)
                yield event.text
        watch.ended("talker", "ann", "stop", Usage(5, 2, 7), 0.05)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> StreamingResponse:
        return StreamingResponse(answer(), headers={"X-Request-Id": "req-7"})

    @app.post("/refused")
    async def refused() -> StreamingResponse:
        watch.refused("talker", "ann", "queue_full")
        return StreamingResponse(iter(["later"]), status_code=429)

    @app.post("/unknown")
    async def unknown() -> None:
        raise Refusal("not_found", "there is no such model", parameter="model")

    @app.post("/told")
    async def told() -> None:
        watch.refused("talker", "ann", "queue_full")
        raise Refusal("queue_full", "later")

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("a mistake of ours")

    @app.get("/health/live")
    async def live() -> None:
        return None

    @app.websocket("/v1/stream")
    async def stream(socket: WebSocket) -> None:
        await socket.accept()
        for _ in range(2):
            await socket.receive_text()
            async for piece in answer():
                await socket.send_text(piece)
        await socket.close(1000)

    errors.install(app)
    return RequestLog(app, metrics), metrics


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_one_line_tells_of_a_request_and_nothing_of_what_was_said(tmp_path: Path) -> None:
    file = tmp_path / "log"
    app, _ = application(StatedService())
    with Logs(LogSettings(format="json", file=file)):
        client = TestClient(app)
        client.post("/v1/chat/completions?key=sk-private", headers={"Authorization": "Bearer sk-private"})
    (line,) = lines_of(file)
    assert line["method"] == "POST" and line["path"] == "/v1/chat/completions" and line["status"] == 200
    assert line["model"] == "talker" and line["caller"] == "ann" and line["finished"] == "stop"
    assert (line["prompt_tokens"], line["cached_tokens"], line["completion_tokens"]) == (5, 2, 7)
    assert line["ttft_seconds"] == 0.0123 and line["request_id"] == "req-7" and line["seconds"] > 0
    assert "donkey" not in file.read_text() and "sk-private" not in file.read_text()


def test_prompts_are_told_where_that_was_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "log"
    app, _ = application(StatedService(), prompts=True)
    with Logs(LogSettings(format="json", file=file)):
        TestClient(app).post("/v1/chat/completions")
    (line,) = lines_of(file)
    assert line["prompt"] == SECRET_TEXT and line["answer"].split() == SECRET_TEXT.split()


def test_a_refusal_has_its_reason(tmp_path: Path) -> None:
    file = tmp_path / "log"
    app, _ = application(StatedService())
    with Logs(LogSettings(format="json", file=file)):
        TestClient(app).post("/refused")
    (line,) = lines_of(file)
    assert line["status"] == 429 and line["refused"] == "queue_full" and line["level"] == "info"


def test_what_a_protocol_refuses_itself_is_counted_once_and_so_is_what_the_service_refuses(tmp_path: Path) -> None:
    file = tmp_path / "log"
    app, metrics = application(StatedService())
    with Logs(LogSettings(format="json", file=file)):
        client = TestClient(app)
        assert client.post("/unknown").status_code == 404
        assert client.post("/told").status_code == 429
        client.get("/nowhere")
    unknown, told, nowhere = lines_of(file)
    assert unknown["refused"] == "not_found" and told["refused"] == "queue_full" and "refused" not in nowhere
    assert "untold" not in unknown
    assert metrics.refusals() == {"not_found": 1, "queue_full": 1}


def test_what_broke_is_an_error_and_what_machines_ask_is_quiet(tmp_path: Path) -> None:
    file = tmp_path / "log"
    app, _ = application(StatedService())
    with Logs(LogSettings(format="json", file=file)):
        client = TestClient(app, raise_server_exceptions=False)
        client.get("/health/live")
        client.get("/broken")
        client.get("/" + "x" * 5000)
    broken, long = lines_of(file)
    assert broken["level"] == "error" and broken["path"] == "/broken"
    assert long["status"] == 404 and len(long["path"]) == 200


def test_a_websocket_has_one_line_with_all_its_answers(tmp_path: Path) -> None:
    file = tmp_path / "log"
    app, _ = application(StatedService())
    with Logs(LogSettings(format="json", file=file)), TestClient(app).websocket_connect("/v1/stream") as socket:
        for _ in range(2):
            socket.send_text("go")
            for _ in range(len(SECRET_TEXT.split()) + 2):
                socket.receive_text()
        socket.receive()
    (line,) = lines_of(file)
    assert line["method"] == "WEBSOCKET" and line["status"] == 1000
    assert line["requests"] == 2 and line["completion_tokens"] == 14


def test_who_hangs_up_is_no_mistake_of_ours(tmp_path: Path) -> None:
    file = tmp_path / "log"

    async def request() -> None:
        with logged("POST", "/v1/completions"):
            await asyncio.sleep(30)

    async def hang_up() -> None:
        task = asyncio.create_task(request())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with Logs(LogSettings(format="json", file=file)):
        asyncio.run(hang_up())
    (line,) = lines_of(file)
    assert line["level"] == "info" and "status" not in line


def test_requests_that_go_on_together_have_their_own_lines(tmp_path: Path) -> None:
    file = tmp_path / "log"
    watch = LoggedWatch(metrics_of(StatedService()))

    async def request(number: int) -> None:
        with logged("gRPC", f"/{number}") as line:
            await asyncio.sleep(0)
            watch.ended("talker", "", "length", Usage(number, 0, 1), 0.1)
            await asyncio.sleep(0)
            line.status = "OK"

    async def together() -> None:
        await asyncio.gather(*map(request, range(20)))

    with Logs(LogSettings(format="json", file=file)):
        asyncio.run(together())
    assert all(line["path"] == f"/{line['prompt_tokens']}" and line["status"] == "OK" for line in lines_of(file))
    assert len(lines_of(file)) == 20
