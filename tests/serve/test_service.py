"""The whole service under load, and how it ends: many requests at once, a full line, clients that leave, signals, peers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from aiasst.serve.settings import Limits, ServeSettings
from tests.serve.running import Running, running

ENDLESS = {"max_tokens": 900, "logit_bias": {"0": -100}}


def settings(**limits: float) -> ServeSettings:
    return ServeSettings(port=0, page=False, limits=Limits(**limits))  # type: ignore[arg-type]


def complete(service: Running, **body: object) -> httpx.Response:
    return service.post("/v1/completions", **{"model": "story-7m-int8", "prompt": "Once", "max_tokens": 4} | body)


@contextmanager
def endless(service: Running) -> Iterator[httpx.Response]:
    """An answer that is under way."""
    body = {"model": "story-7m-int8", "prompt": "Once", "stream": True, **ENDLESS}
    with service.client.stream("POST", "/v1/completions", json=body) as response:
        assert response.status_code == 200
        lines = response.iter_lines()  # kept: the connection is closed with it
        next(lines)
        yield response


def test_many_requests_at_once_are_all_answered_each_with_its_own(tiny: Path) -> None:
    prompts = [f"the {chr(97 + index % 26)} and {index}" for index in range(64)]

    def ask(prompt: str) -> str:
        made = service.post("/v1/completions", model="tiny", prompt=prompt, max_tokens=6, temperature=0)
        assert made.status_code == 200
        return str(made.json()["choices"][0]["text"])

    with running(tiny) as service:
        apart = [ask(prompt) for prompt in prompts[:8]]
        with ThreadPoolExecutor(64) as pool:
            together = list(pool.map(ask, prompts))
        assert together[:8] == apart
        assert len(set(together)) > 10
        service.until(lambda: service.hub.model("").running == 0)


def test_a_full_line_is_said_with_a_time_and_comes_free_again(story: Path) -> None:
    limits = settings(most_running=1, most_waiting=1)
    with running(story, settings=limits) as service, ThreadPoolExecutor(1) as pool:
        with endless(service):
            second = pool.submit(complete, service)
            service.until(lambda: service.hub.model("").waiting == 1)
            for stream in (False, True):
                refused = complete(service, stream=stream)
                assert refused.status_code == 429
                assert refused.json()["error"]["code"] == "queue_full"
                assert int(refused.headers["retry-after"]) >= 1
            told = service.client.get("/v1/models/story-7m-int8").json()
            assert (told["state"], told["running"], told["waiting"]) == ("ready", 1, 1)
        # The client of the endless one has left: its place goes to the one in line.
        assert second.result(60).status_code == 200
        assert complete(service).status_code == 200


def test_a_client_that_leaves_ends_its_work_streamed_or_not(story: Path) -> None:
    with running(story) as service:
        with endless(service):
            pass
        service.until(lambda: service.hub.model("").running == 0)
        with pytest.raises(httpx.ReadTimeout):
            service.client.post(
                "/v1/completions", json={"model": "story-7m-int8", "prompt": "Once", "n": 3, **ENDLESS}, timeout=0.3
            )
        service.until(lambda: service.hub.model("").running == 0)
        worker = service.hub._models["story-7m-int8"].worker
        assert worker is not None
        service.until(lambda: not worker._engine.busy)
        assert complete(service).status_code == 200


def test_what_would_wait_goes_to_a_peer_once(story: Path) -> None:
    with running(story) as peer:
        narrow = ServeSettings(
            port=0, page=False, peers=(f"http://127.0.0.1:{_free_port()}", peer.url), limits=Limits(most_running=1)
        )
        with running(story, settings=narrow) as service:
            here = complete(service)
            with endless(service):
                for stream in (False, True):
                    forwarded = complete(service, stream=stream, temperature=0)
                    assert forwarded.status_code == 200
                    lines = [line for line in forwarded.text.splitlines() if line]
                    assert not stream or lines[-1] == "data: [DONE]"
                assert peer.hub.model("").stats is not None  # it was loaded for this
                refused = complete(service, suffix="x")  # its refusals are passed on as they are
                assert refused.status_code == 400 and refused.json()["error"]["param"] == "suffix"
                # What was forwarded is not forwarded again: it waits here.
                with pytest.raises(httpx.ReadTimeout):
                    service.client.post(
                        "/v1/completions",
                        json={"model": "story-7m-int8", "prompt": "a", "max_tokens": 1},
                        headers={"x-aiasst-forwarded": "1"},
                        timeout=0.5,
                    )
            assert here.status_code == 200 and complete(service).status_code == 200


def test_the_document_of_the_interface_tells_every_route_and_error(story: Path) -> None:
    with running(story) as service:
        document = service.client.get("/openapi.json").json()
    paths = document["paths"]
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"):
        told = paths[path]["post"]["responses"]
        assert {"200", "400", "401", "404", "413", "429", "503", "504"} <= told.keys() and "422" not in told
        schema = told["429"]["content"]["application/json"]["schema"]["$ref"]
        assert schema.endswith("/ErrorBody")
    chat = paths["/v1/chat/completions"]["post"]["responses"]["200"]["content"]
    assert chat.keys() == {"application/json", "text/event-stream"}
    fields = document["components"]["schemas"]["ChatFields"]["properties"]
    assert "extension" in fields["top_k"]["description"].lower()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def started(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`aiasst serve` as a process, and where it answers."""
    port = _free_port()
    command = [sys.executable, "-m", "aiasst", "serve", *map(str, arguments), "--port", str(port), "--no-page"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    url = f"http://127.0.0.1:{port}"
    try:
        _until_ready(process, url)
        yield process, url
    finally:
        process.kill()
        process.communicate()


def _until_ready(process: subprocess.Popen[str], url: str) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"{url}/health/ready").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError(f"it did not start: {process.communicate(timeout=5)}")


@pytest.mark.skipif(os.name == "nt", reason="signals are those of POSIX")
def test_a_signal_lets_answers_end_and_a_second_one_does_not(story: Path) -> None:
    body = {"model": "story-7m-int8", "prompt": "Once", "stream": True, "logit_bias": {"0": -100}}
    with started(story) as (process, url), httpx.Client(base_url=url, timeout=60) as client:
        with client.stream("POST", "/v1/completions", json={**body, "max_tokens": 60}) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            heard = [line for line in lines if line]
        assert heard[-1] == "data: [DONE]"
        assert json.loads(heard[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert process.wait(30) == 0
    with (
        started(story) as (process, url),
        httpx.stream("POST", f"{url}/v1/completions", json={**body, "max_tokens": 900}, timeout=60) as response,
    ):
        lines = response.iter_lines()
        next(lines)
        process.send_signal(signal.SIGINT)
        while httpx.get(f"{url}/health/ready").status_code != 503:
            time.sleep(0.01)
        refused = httpx.post(f"{url}/v1/completions", json={**body, "stream": False})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "stopping")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def test_a_taken_port_and_an_open_address_are_errors_with_hints(story: Path) -> None:
    def failed(*arguments: object) -> str:
        command = [sys.executable, "-m", "aiasst", "serve", *map(str, arguments)]
        run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert run.returncode == 1 and run.stdout == ""
        return " ".join(run.stderr.split())

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        said = failed(story, "--port", taken.getsockname()[1])
        assert "cannot listen" in said and "--port" in said
    assert "no API keys" in failed(story, "--host", "0.0.0.0", "--port", 0)
    assert "two models are called" in failed(story, story)
