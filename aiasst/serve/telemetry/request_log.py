"""One line a request in the log: what was asked of whom, how it ended and how long it took. Never a key; a prompt only if told to.

Three ends meet in one line: the middleware has the request and its answer, the watch what the engine did, and, where prompts are
logged, the service what was said. They find each other by a context variable, which every task of a request inherits.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, MutableMapping, Sequence
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from typing import Any

from aiasst.engine.requests import Finished, Sampling
from aiasst.engine.text import TextEvent, TextRequest, Usage
from aiasst.serve.refusals import Reason
from aiasst.serve.service import Caller, ModelState, Service, Vectors
from aiasst.serve.telemetry.logs import FIELDS, SAID
from aiasst.serve.watch import Watch

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

QUIET = frozenset({"/health/live", "/health/ready", "/metrics", "/v1/status"})
"""Asked every few seconds by machines: told at "debug" where nothing is wrong."""
BROKEN = frozenset({500, 1011, "INTERNAL", "UNKNOWN"})
"""Statuses of answers that broke off through a mistake of ours."""
MOST_PATH = 200
MOST_TEXT = 20_000
"""Characters of a path, and of prompts or answers of one line."""
_log = logging.getLogger("aiasst.serve.requests")


@dataclass
class Line:
    """What is known of a request; what is None is not told."""

    method: str
    path: str
    status: int | str | None = None
    """Of HTTP; the close code of a WebSocket; the name of a gRPC status."""
    model: str | None = None
    caller: str | None = None
    request_id: str | None = None
    refused: Reason | None = None
    finished: str | None = None
    """Why the answer ended, "failed" where it did not end well; of several (a WebSocket's) the last."""
    requests: int | None = None
    """Answers on one connection, where they were several."""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    texts: int | None = None
    """That became vectors."""
    ttft_seconds: float | None = None
    """To the first token, of the first answer."""
    seconds: float | None = None
    prompt: str | None = None
    answer: str | None = None
    untold: bool = field(default=False, repr=False)
    """No watch knows yet that it was refused."""

    def told(self) -> dict[str, Any]:
        """What is known, by its name; seconds to the tenth of a millisecond."""
        known = ((each.name, getattr(self, each.name)) for each in fields(self) if each.name != "untold")
        return {
            name: round(value, 4) if isinstance(value, float) else value for name, value in known if value is not None
        }

    def answered(self, model: str, caller: str, finished: str) -> None:
        """Note that one answer ended."""
        if self.finished is not None:
            self.requests = (self.requests or 1) + 1
        self.model, self.caller, self.finished = model, caller or None, finished

    def add(self, **counts: int) -> None:
        """Add to counts."""
        for name, count in counts.items():
            setattr(self, name, (getattr(self, name) or 0) + count)


_line: ContextVar[Line | None] = ContextVar("line", default=None)


def note_refusal(reason: Reason, caller: str) -> None:
    """For protocols that refuse a request before the service was asked: told at its end, unless somebody has told of it already."""
    line = _line.get()
    if line is not None and line.refused is None:
        line.refused, line.caller, line.untold = reason, caller or line.caller, True


@contextmanager
def logged(method: str, path: str) -> Iterator[Line]:
    """A request while it goes on; its line is written at the end, however that comes. For protocols that are no ASGI too."""
    line = Line(method, path[:MOST_PATH])
    token, began = _line.set(line), time.perf_counter()
    failed = False
    try:
        yield line
    except Exception:  # who hangs up cancels, which is no Exception and no fault of ours
        failed = True
        raise
    finally:
        _line.reset(token)
        line.seconds = time.perf_counter() - began
        level = logging.ERROR if failed or line.status in BROKEN else logging.INFO
        if level == logging.INFO and line.path in QUIET:
            level = logging.DEBUG
        told = {FIELDS: line.told(), SAID: ("method", "path", "status")}
        _log.log(level, "%s %s %s", line.method, line.path, line.status or "-", extra=told)


class RequestLog:
    """An ASGI application around all others: a line for each request of HTTP, and for each connection of a WebSocket.

    The path is told without its query, where some clients put keys.
    """

    def __init__(self, app: App, watch: Watch) -> None:
        """`app` is the whole service, what guards it included; `watch` is told of refusals that nobody else tells."""
        self._app, self._watch = app, watch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's scope."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        with logged(scope.get("method", "WEBSOCKET"), scope["path"]) as line:

            async def sent(message: Message) -> None:
                _note(line, message)
                await send(message)

            await self._app(scope, receive, sent)
            if line.untold and line.refused is not None:
                self._watch.refused(line.model or "", line.caller or "", line.refused)


class LoggedWatch:
    """A watch that notes what it is told in the request's line, and passes it on."""

    def __init__(self, watch: Watch) -> None:
        """`watch` is told the same."""
        self._watch = watch

    def began(self, model: str, caller: str) -> None:
        """A request was admitted."""
        self._watch.began(model, caller)

    def first_token(self, model: str, seconds: float) -> None:
        """Its first token came."""
        line = _line.get()
        if line is not None and line.ttft_seconds is None:
            line.ttft_seconds = seconds
        self._watch.first_token(model, seconds)

    def next_token(self, model: str, seconds: float) -> None:
        """A later token came."""
        self._watch.next_token(model, seconds)

    def ended(self, model: str, caller: str, finished: Finished | None, usage: Usage | None, seconds: float) -> None:
        """It ended."""
        line = _line.get()
        if line is not None:
            line.answered(model, caller, finished or "failed")
            if usage is not None:
                line.add(
                    prompt_tokens=usage.prompt_tokens,
                    cached_tokens=usage.cached_tokens,
                    completion_tokens=usage.completion_tokens,
                )
        self._watch.ended(model, caller, finished, usage, seconds)

    def embedded(self, model: str, caller: str, texts: int, tokens: int, seconds: float) -> None:
        """Texts became vectors."""
        line = _line.get()
        if line is not None:
            line.answered(model, caller, "embedded")
            line.add(prompt_tokens=tokens, texts=texts)
        self._watch.embedded(model, caller, texts, tokens, seconds)

    def refused(self, model: str, caller: str, reason: Reason) -> None:
        """It was not served."""
        line = _line.get()
        if line is not None:
            line.refused = reason
            line.model, line.caller = model or line.model, caller or line.caller
        self._watch.refused(model, caller, reason)


class PromptLog:
    """A service that notes what is said in the request's line. Only for those who chose to keep it (`log_prompts`)."""

    def __init__(self, service: Service) -> None:
        """`service` does the work."""
        self._service = service

    def models(self) -> tuple[ModelState, ...]:
        """See `Service`."""
        return self._service.models()

    def model(self, name: str) -> ModelState:
        """See `Service`."""
        return self._service.model(name)

    def defaults(self, model: str) -> Sampling:
        """See `Service`."""
        return self._service.defaults(model)

    async def generate(self, model: str, request: TextRequest, caller: Caller) -> AsyncGenerator[TextEvent, None]:
        """See `Service`."""
        line, room = _line.get(), MOST_TEXT
        if line is not None:
            line.prompt, line.answer = _said(request)[:MOST_TEXT], ""
        async with aclosing(self._service.generate(model, request, caller)) as events:
            async for event in events:
                if line is not None and line.answer is not None and room > 0:
                    line.answer += event.text[:room]
                    room -= len(event.text)
                yield event

    async def embed(self, model: str, texts: Sequence[str | tuple[int, ...]], caller: Caller) -> Vectors:
        """See `Service`."""
        line = _line.get()
        if line is not None:
            line.prompt = "\n".join(map(str, texts))[:MOST_TEXT]
        return await self._service.embed(model, texts, caller)

    @property
    def accepting(self) -> bool:
        """See `Service`."""
        return self._service.accepting

    @property
    def ready(self) -> bool:
        """See `Service`."""
        return self._service.ready


def _said(request: TextRequest) -> str:
    """The prompt as it came: a text, ids, or messages under their roles."""
    if request.messages is None:
        return str(request.prompt)
    return "\n".join(f"{message.role}: {message.content}" for message in request.messages)


def _note(line: Line, message: Message) -> None:
    """What an answer's beginning, or a WebSocket's end, says."""
    kind = message["type"]
    if kind in ("http.response.start", "websocket.http.response.start"):
        line.status = message["status"]
        given = next((value for name, value in message.get("headers", ()) if name.lower() == b"x-request-id"), None)
        if given is not None:
            line.request_id = given.decode("latin-1")
    elif kind == "websocket.accept":
        line.status = 101
    elif kind == "websocket.close":
        line.status = message.get("code", 1000)
