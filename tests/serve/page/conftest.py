"""A service that says what a test wants to see on the page, and a real browser without a screen."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from aiasst.serve import page
from aiasst.serve.guard.headers import CONTENT_SECURITY_POLICY

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")


@dataclass
class Service:
    """What it is asked, and how it answers."""

    asked: list[dict[str, Any]] = field(default_factory=list)
    answer: str = "Hello there, friend."
    pause: float = 0.0
    """Seconds between two pieces."""
    refusal: tuple[int, str, dict[str, str]] | None = None
    key: str = ""
    chat: bool = True
    closed: int = 0
    """Answers that the browser left."""
    status: dict[str, Any] = field(default_factory=dict)
    url: str = ""


def _refused(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    error = {"message": message, "type": "error", "param": None, "code": None}
    return JSONResponse({"error": error}, status, headers)


def _app(service: Service) -> FastAPI:
    app = FastAPI()
    app.include_router(page.router())

    @app.middleware("http")
    async def careful(request: Request, go: Any) -> Response:
        wanted = f"Bearer {service.key}" if service.key and request.url.path.startswith("/v1/") else None
        if wanted is not None and request.headers.get("authorization") != wanted:
            return _refused(401, "this service needs an API key")
        response: Response = await go(request)
        response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
        return response

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        made = {"object": "model", "created": 0, "owned_by": "aiasst", "state": "ready", "context_length": 2048}
        return {
            "object": "list",
            "data": [
                made | {"id": "small", "kind": "text-generation", "has_chat_template": service.chat},
                made | {"id": "large", "kind": "text-generation", "has_chat_template": True, "state": "unloaded"},
                made | {"id": "vectors", "kind": "encoder", "has_chat_template": False},
            ],
        }

    async def pieces(text_of: Any) -> AsyncIterator[str]:
        ended = False
        try:
            for start in range(0, len(service.answer), 5):
                yield f"data: {json.dumps({'choices': [text_of(service.answer[start : start + 5], None)]})}\n\n"
                await asyncio.sleep(service.pause)
            yield f"data: {json.dumps({'choices': [text_of('', 'stop')]})}\n\n"
            yield f"data: {json.dumps({'choices': [], 'usage': {'completion_tokens': 12}})}\n\n"
            yield "data: [DONE]\n\n"
            ended = True
        finally:
            service.closed += not ended

    async def answered(request: Request, text_of: Any) -> Response:
        service.asked.append(await request.json())
        if service.refusal is not None:
            (status, message, headers), service.refusal = service.refusal, None
            return _refused(status, message, headers)
        return StreamingResponse(pieces(text_of), media_type="text/event-stream")

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await answered(request, lambda text, end: {"delta": {"content": text}, "finish_reason": end})

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await answered(request, lambda text, end: {"text": text, "finish_reason": end})

    @app.get("/v1/status")
    async def status() -> dict[str, Any]:
        return service.status

    return app


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(_app(made), port=port, log_config=None, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    made.url = f"http://127.0.0.1:{port}"
    yield made
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    driver = shutil.which("chromedriver")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if driver is None or program is None:
        pytest.skip("Chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    profile: Path = tmp_path_factory.mktemp("chromium")
    for argument in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
        f"--user-data-dir={profile}", "--window-size=1100,800",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    browser.set_page_load_timeout(60)
    yield browser
    browser.quit()


@pytest.fixture
def browser(chromium: Any, service: Service) -> Iterator[Any]:
    """A browser that has never been here, at the page's address but not on the page yet."""
    chromium.set_window_size(1100, 800)
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    chromium.get(f"{service.url}/page/icon.svg")
    chromium.execute_script("localStorage.clear(); sessionStorage.clear()")
    chromium.get_log("browser"), chromium.get_log("performance")
    yield chromium
    complaints = [entry["message"] for entry in chromium.get_log("browser") if "Content Security" in entry["message"]]
    assert complaints == []
    chromium.get("about:blank")
