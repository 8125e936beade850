"""The compact form over REST: POST /v1/query, answered whole or as server-sent events. Knows no engine.

    {"query": "…", "context": ["…", …], "params": {…}, "model": "…", "stream": false}
    → {"answer": "…", "model": "…", "finish_reason": "…", "usage": {…}}

With `stream` the answer comes in pieces, `data: {"text": "…"}`, whose last has `model`, `finish_reason` and `usage` too; what
goes wrong on the way is an `event: error` with `data: {"error": {…}}`. See `forms.py` and `context.py` for the request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import Annotated, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import ConfigDict, Field
from starlette.requests import HTTPConnection
from starlette.types import Receive, Scope, Send

from aiasst.artifacts.document import Document
from aiasst.engine.text import TextEvent
from aiasst.serve.forms import AnswerFields, Asked, AskFields, ErrorFields, ParamsFields, PieceFields, asked, whole
from aiasst.serve.refusals import Refusal
from aiasst.serve.service import Caller, Service

_T = TypeVar("_T")
_GONE = 499
"""nginx's status for a client that closed the connection; nobody reads it but logs."""


class QueryFields(Document):
    """A query over passages of context."""

    model_config = ConfigDict(strict=True)

    query: str
    context: Annotated[tuple[str, ...], Field(strict=False)] = ()
    params: ParamsFields = ParamsFields()
    model: str = ""
    stream: bool = False


def router(service: Service) -> APIRouter:
    """The route /v1/query. A Refusal goes up to the application, as does a request that is not understood."""
    routes = APIRouter(tags=["query"])

    @routes.post(
        "/v1/query",
        response_model=AnswerFields,
        response_model_exclude_none=True,
        responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
        summary="Answer a query over passages of context",
    )
    async def query(fields: QueryFields, request: Request) -> Response:
        asks = AskFields(query=fields.query, context=fields.context, params=fields.params, model=fields.model)
        wanted = asked(service, asks, "query")
        events = service.generate(wanted.model, wanted.request, caller_of(request))
        if fields.stream:
            return await _streamed(wanted, events, request)
        answer = await _unless_gone(request, whole(events))
        if answer is None:
            return Response(status_code=_GONE)
        return JSONResponse(AnswerFields.of(wanted, answer).model_dump(mode="json", exclude_none=True))

    return routes


def caller_of(connection: HTTPConnection) -> Caller:
    """Who asks, as the guard found out; nobody in particular where there is none."""
    caller = connection.scope.get("state", {}).get("caller")
    return caller if isinstance(caller, Caller) else Caller()


async def _streamed(wanted: Asked, events: AsyncGenerator[TextEvent, None], request: Request) -> Response:
    """Waits for the first piece, so that a refusal has its own status."""
    first = await _unless_gone(request, anext(events))
    if first is None:
        await events.aclose()
        return Response(status_code=_GONE)
    return _EventStream(_server_sent(wanted, first, events), events)


async def _server_sent(
    wanted: Asked, first: TextEvent, events: AsyncGenerator[TextEvent, None]
) -> AsyncGenerator[str, None]:
    """Events of the WHATWG's "Server-sent events", 9.2.6."""
    yield _data(wanted, first)
    try:
        async for event in events:
            yield _data(wanted, event)
    except Refusal as refusal:
        yield f'event: error\ndata: {{"error": {ErrorFields.of(refusal).model_dump_json(exclude_none=True)}}}\n\n'


def _data(wanted: Asked, event: TextEvent) -> str:
    return f"data: {PieceFields.of(wanted, event).model_dump_json(exclude_none=True)}\n\n"


class _EventStream(StreamingResponse):
    """Server-sent events; the answer ends as soon as nobody listens, not when its generator is collected."""

    media_type = "text/event-stream"

    def __init__(self, content: AsyncGenerator[str, None], answer: AsyncGenerator[TextEvent, None]) -> None:
        # A proxy that collects pieces would spoil them (nginx asks for the second header).
        super().__init__(content, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._content = content
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send what comes, until it ends or the client goes."""
        async with aclosing(self._answer), aclosing(self._content):
            await super().__call__(scope, receive, send)


async def _unless_gone(request: Request, work: Awaitable[_T]) -> _T | None:
    """What `work` gives; None, and `work` is cancelled, where the client closes the connection first."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
