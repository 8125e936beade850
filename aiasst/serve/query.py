"""The compact form over REST: POST /v1/query, answered whole or as server-sent events. Knows no engine.

    {"query": "…", "context": ["…", …], "params": {…}, "model": "…", "stream": false}
    → {"answer": "…", "model": "…", "finish_reason": "…", "usage": {…}}

With `stream` the answer comes in pieces, `data: {"text": "…"}`, whose last has `model`, `finish_reason` and `usage` too; what
goes wrong on the way is an `event: error` with `data: {"error": {…}}`. See `forms.py` and `context.py` for the request.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import ConfigDict, Field

from aiasst.artifacts.document import Document
from aiasst.engine.text import TextEvent
from aiasst.serve.forms import AnswerFields, Asked, AskFields, ParamsFields, PieceFields, answer, asked, says_something
from aiasst.serve.refusals import Refusal
from aiasst.serve.rest.answering import refuse_nothing
from aiasst.serve.rest.bodies import JsonRoute
from aiasst.serve.rest.common import caller_of, named
from aiasst.serve.rest.errors import ERRORS, body_of
from aiasst.serve.rest.sse import STREAM, ClientGoneError, EventStream, event, nobody_there, until_gone
from aiasst.serve.service import Service


class QueryFields(Document):
    """A query over passages of context."""

    model_config = ConfigDict(strict=True)

    query: str
    context: Annotated[tuple[str, ...], Field(strict=False)] = ()
    params: ParamsFields = ParamsFields()
    model: str = ""
    stream: bool = False


def router(service: Service) -> APIRouter:
    """The route /v1/query."""
    made = APIRouter(tags=["query"], responses=ERRORS, route_class=JsonRoute)

    @made.post(
        "/v1/query",
        response_model=AnswerFields,
        responses=STREAM,
        summary="Answer a query over passages of context",
    )
    async def query(fields: QueryFields, request: Request) -> Response:
        """Answer a query, whole or in pieces."""
        asks = AskFields(query=fields.query, context=fields.context, params=fields.params, model=fields.model)
        wanted, caller = asked(service, asks, named("query")), caller_of(request)
        try:
            if not fields.stream:
                whole = await until_gone(request, answer(service, wanted, caller))
                return JSONResponse(AnswerFields.of(wanted, whole).model_dump(mode="json", exclude_none=True))
            events = service.generate(wanted.model, wanted.request, caller)
            # It is empty, and comes when the engine takes the request: until then a refusal has its own status.
            await until_gone(request, anext(events))
            return EventStream(_events(wanted, events))
        except ClientGoneError:
            return nobody_there()

    return made


async def _events(wanted: Asked, rest: AsyncGenerator[TextEvent, None]) -> AsyncGenerator[bytes, None]:
    """What is left of the answer, as events."""
    async with aclosing(rest) as pieces:
        try:
            async for piece in pieces:
                refuse_nothing(piece.finished, piece.usage)
                if says_something(piece):
                    yield event(PieceFields.of(wanted, piece).model_dump(mode="json", exclude_none=True))
        except Refusal as refusal:
            yield event(body_of(refusal), "error")
