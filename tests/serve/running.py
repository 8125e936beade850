"""The whole service on a real port, in a thread with an event loop of its own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import openai

from aiasst.artifacts.model_folder import ModelFolder
from aiasst.serve.app import application
from aiasst.serve.guard import Gate
from aiasst.serve.guard.listening import server_config
from aiasst.serve.models.hub import Hub, Served
from aiasst.serve.server import Server, bound
from aiasst.serve.settings import ServeSettings
from aiasst.serve.telemetry.metrics import Metrics
from aiasst.serve.telemetry.request_log import LoggedWatch

T = TypeVar("T")


@dataclass
class Running:
    """A service that answers."""

    url: str
    hub: Hub
    server: Server
    loop: asyncio.AbstractEventLoop
    client: httpx.Client

    def openai(self) -> openai.OpenAI:
        """OpenAI's own client."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=120)

    def post(self, path: str, **body: Any) -> httpx.Response:
        """The answer to a request."""
        return self.client.post(path, json=body)

    def on_loop(self, ask: Callable[[], T]) -> T:
        """What `ask` gives on the service's loop."""

        async def asked() -> T:
            return ask()

        return asyncio.run_coroutine_threadsafe(asked(), self.loop).result(60)

    def until(self, holds: Callable[[], bool], seconds: float = 60) -> None:
        """Wait until something holds on the service's loop; fails where it never does."""
        end = time.monotonic() + seconds
        while not self.on_loop(holds):
            assert time.monotonic() < end
            time.sleep(0.01)


@contextmanager
def running(
    *folders: Path, settings: ServeSettings | None = None, names: tuple[str, ...] = (), **of_hub: Any
) -> Iterator[Running]:
    """Serve `folders` (called `names`, or after themselves) as long as the block runs."""
    settings = settings or ServeSettings(port=0, page=False)
    called = names or tuple(folder.name for folder in folders)
    served = [Served(name, ModelFolder.open(folder)) for name, folder in zip(called, folders, strict=True)]
    of_hub.setdefault("speculate", False)
    hub = Hub(served, limits=settings.limits, **of_hub)
    counted = Metrics(settings.keys)
    hub.watch = LoggedWatch(counted)
    counted.ask(hub.models)
    with bound(settings) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        config = server_config(application(hub, counted, settings, Gate(settings)), settings)
        began = threading.Event()
        server = Server(config, hub, ready=lambda port: began.set())
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            assert began.wait(60)
            assert server._loop is not None
            with httpx.Client(base_url=url, timeout=120) as client:
                yield Running(url, hub, server, server._loop, client)
        finally:
            server.handle_exit(15, None)
            thread.join(120)
            assert not thread.is_alive()
