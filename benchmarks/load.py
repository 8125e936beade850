"""Clients of an OpenAI-compatible server, many at once, and what they saw: when each token came, what went wrong. Knows no server.

Written on bare sockets, so that the client takes as little of the machine as it can beside the server that it measures.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

VOCABULARY = """
once upon a time there was little girl boy dog cat who liked to play in the garden with her ball and his friend they saw big red
bird tree one day mom said we can go home but it very happy sad because found lost under water sun
"""


@dataclass
class Answer:
    """What a client saw of one request; times are seconds of `time.perf_counter`."""

    sent: float
    status: int = 0
    """0: the connection broke before there was one."""
    arrivals: list[float] = field(default_factory=list)
    """When pieces of the answer came."""
    text: str = ""
    tokens: int = 0
    """Of the answer, as the server counts them; the pieces where it does not."""
    complete: bool = False
    """It came to its end as the protocol has it."""
    ended: float = 0.0
    error: str = ""

    @property
    def first(self) -> float:
        """Seconds to the first piece."""
        return self.arrivals[0] - self.sent

    @property
    def gaps(self) -> list[float]:
        """Seconds between pieces."""
        return np.diff(self.arrivals).tolist()


@dataclass(frozen=True)
class Asked:
    """One request."""

    body: dict[str, Any]
    path: str = "/v1/completions"
    give_up_after: int | None = None
    """Pieces after which the client hangs up."""
    raw: bytes | None = None
    """Sent instead of the body."""


class Connection:
    """One client: a connection that is kept, opened again when it is lost."""

    def __init__(self, port: int, key: str | None = None) -> None:
        self.port = port
        self.head = f"Host: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        self.head += f"Authorization: Bearer {key}\r\n" if key else ""
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def ask(self, asked: Asked) -> Answer:
        """Send one request and take its answer; what goes wrong is told in it."""
        body = asked.raw if asked.raw is not None else json.dumps(asked.body).encode()
        answer = Answer(time.perf_counter())
        try:
            if self.writer is None:
                self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
                answer.sent = time.perf_counter()
            head = f"POST {asked.path} HTTP/1.1\r\n{self.head}Content-Length: {len(body)}\r\n\r\n"
            self.writer.write(head.encode() + body)
            await self._take(answer, asked)
        except (OSError, EOFError, ValueError) as error:  # EOFError: asyncio.IncompleteReadError; ValueError: no HTTP
            answer.error = f"{type(error).__name__}: {error}"
            self.close()
        answer.ended = time.perf_counter()
        return answer

    def close(self) -> None:
        """Hang up."""
        if self.writer is not None:
            self.writer.close()
        self.reader = self.writer = None

    async def _take(self, answer: Answer, asked: Asked) -> None:
        assert self.reader is not None
        status = (await self.reader.readline()).split()
        if len(status) < 2:
            raise ConnectionResetError("closed without an answer")
        headers: dict[str, str] = {}
        while (line := (await self.reader.readline()).strip()) != b"":
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        answer.status = int(status[1])
        if "text/event-stream" in headers.get("content-type", ""):
            await self._take_events(answer, asked, headers)
        else:
            whole = b"".join([piece async for piece in self._pieces(headers)])
            self._read_whole(answer, whole)
        if headers.get("connection", "").lower() == "close":
            self.close()

    async def _take_events(self, answer: Answer, asked: Asked, headers: dict[str, str]) -> None:
        buffer = b""
        async for piece in self._pieces(headers):
            now = time.perf_counter()
            *events, buffer = (buffer + piece).replace(b"\r\n", b"\n").split(b"\n\n")
            for event in events:
                self._read_event(answer, event, now)
            if asked.give_up_after is not None and len(answer.arrivals) >= asked.give_up_after:
                answer.complete = True
                self.close()
                return
        answer.tokens = answer.tokens or len(answer.arrivals)

    def _read_event(self, answer: Answer, event: bytes, now: float) -> None:
        data = b"".join(line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:"))
        if data == b"[DONE]":
            answer.complete = True
            return
        if not data:
            return
        told = json.loads(data)
        if "error" in told:
            answer.error = str(told["error"])
        if told.get("usage"):
            answer.tokens = told["usage"]["completion_tokens"]
        for choice in told.get("choices", ()):
            answer.text += choice.get("text") or (choice.get("delta") or {}).get("content") or ""
            if choice.get("finish_reason") is None:
                answer.arrivals.append(now)

    def _read_whole(self, answer: Answer, whole: bytes) -> None:
        told = json.loads(whole) if whole else {}
        answer.complete = True
        if answer.status != 200:
            answer.error = str(told.get("error", told))
            return
        answer.tokens = told["usage"]["completion_tokens"]
        answer.text = told["choices"][0].get("text") or ""

    async def _pieces(self, headers: dict[str, str]) -> AsyncIterator[bytes]:
        assert self.reader is not None
        if headers.get("transfer-encoding", "").lower() != "chunked":
            yield await self.reader.readexactly(int(headers.get("content-length", 0)))
            return
        while size := int(await self.reader.readline(), 16):
            piece = await self.reader.readexactly(size + 2)
            yield piece[:-2]
            if self.reader is None:  # whoever read it has hung up
                return
        await self.reader.readline()


def prompts(count: int, words: int, seed: int) -> list[str]:
    """Different beginnings; the same seed gives the same ones."""
    random, known = np.random.default_rng(seed), VOCABULARY.split()
    return [" ".join(random.choice(known, words)) for _ in range(count)]


def completions(
    texts: Sequence[str], tokens: int, *, stream: bool = True, model: str | None = None, **more: object
) -> list[Asked]:
    """Greedy continuations of a number of tokens, at most."""
    body: dict[str, Any] = {"max_tokens": tokens, "temperature": 0, "stream": stream, **more}
    if stream:
        body["stream_options"] = {"include_usage": True}
    if model is not None:
        body["model"] = model
    return [Asked({**body, "prompt": text}) for text in texts]


async def closed_loop(
    port: int,
    clients: int,
    requests: Iterator[Asked],
    *,
    told: Callable[[Asked, Answer], None] = lambda asked, answer: None,
    key: str | None = None,
) -> list[Answer]:
    """Clients that send their next request when the last one has ended, until there are no more."""
    answers: list[Answer] = []

    async def client() -> None:
        connection = Connection(port, key)
        for asked in requests:
            answer = await connection.ask(asked)
            answers.append(answer)
            told(asked, answer)
            if answer.status != 200:
                await asyncio.sleep(0.05)  # who is refused does not ask again at once
        connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return answers


def quantile_ms(seconds: Sequence[float], share: float) -> float:
    """Milliseconds that this share of the values does not exceed."""
    return 1000 * float(np.quantile(np.array(seconds), share)) if len(seconds) else float("nan")
