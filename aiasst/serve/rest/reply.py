"""Answers as one document or as events, until the client goes away. Knows no document of any protocol."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from aiasst.engine.text import TextRequest
from aiasst.serve.rest.answering import Numbered, Whole, answers, whole_answers
from aiasst.serve.rest.sse import ClientGoneError, EventStream, nobody_there, until_gone
from aiasst.serve.service import Caller, Service

Document = Callable[[list[Whole]], dict[str, Any]]
"""All answers → what is sent."""
Events = Callable[[AsyncGenerator[Numbered, None]], AsyncGenerator[bytes, None]]
"""The pieces of the answers → what is sent."""


async def reply(
    request: Request,
    service: Service,
    caller: Caller,
    *,
    model: str,
    requests: Sequence[TextRequest],
    document: Document,
    events: Events | None,
) -> Response:
    """Answer `requests` with events where `events` is given, else whole. The first piece is awaited before anything is sent.

    Raises:
        Refusal: see `answers` and `whole_answers`.
    """
    try:
        if events is None:
            return JSONResponse(document(await until_gone(request, whole_answers(service, model, requests, caller))))
        pieces = answers(service, model, requests, caller)
        first = await until_gone(request, anext(pieces))
        return EventStream(events(_all(first, pieces)))
    except ClientGoneError:
        return nobody_there()


async def _all(first: Numbered, rest: AsyncGenerator[Numbered, None]) -> AsyncGenerator[Numbered, None]:
    """All pieces again, where the first was taken already."""
    async with aclosing(rest):
        yield first
        async for piece in rest:
            yield piece
