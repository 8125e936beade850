"""POST /v1/completions: prompts in, their continuations out, whole or in pieces. Knows no engine."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from aiasst.engine.requests import MOST_ALTERNATIVES
from aiasst.engine.text import TextRequest, TokenReport, Usage
from aiasst.serve.refusals import Refusal
from aiasst.serve.rest.answering import Numbered, Whole, refuse_nothing, used
from aiasst.serve.rest.asked import constraint_of, sampling_of, several, stops_of
from aiasst.serve.rest.bodies import JsonRoute
from aiasst.serve.rest.common import FINISH_REASONS, UsageFields, caller_of, named, now, texts_or_ids, usage_of
from aiasst.serve.rest.errors import body_of
from aiasst.serve.rest.fields import ResponseFormat, SamplingFields, refuse_unsupported
from aiasst.serve.rest.logprobs import of_completion
from aiasst.serve.rest.reply import reply
from aiasst.serve.rest.sse import DONE, STREAM, event
from aiasst.serve.service import Service

USUAL_TOKENS = 16
"""OpenAI's own, where the request sets no limit."""
MOST_ANSWERS = 128
"""To one request, all prompts together."""

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Prompts = str | Annotated[list[str] | list[TokenId] | list[list[TokenId]], Field(min_length=1)]


class CompletionFields(SamplingFields):
    """A request."""

    prompt: Prompts
    """A text, its token ids, or several of either."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Of each continuation; without it 16."""
    logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = None
    """Tell each token's log probability and those of so many others."""
    echo: bool | None = None
    """Put the prompt before its continuation."""
    response_format: ResponseFormat | None = None
    """As in chat completions. An extension."""
    # refused unless they say nothing
    suffix: str | None = None
    best_of: int | None = None


class CompletionChoice(BaseModel):
    """One continuation."""

    index: int
    text: str
    logprobs: dict[str, Any] | None = None
    finish_reason: Literal["stop", "length"]


class Completion(BaseModel):
    """All continuations."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageFields


@dataclass(frozen=True)
class Asked:
    """A request as it was understood."""

    id: str
    created: int
    model: str
    requests: list[TextRequest]
    """All continuations of the first prompt, then those of the second."""
    prompts: int
    echoes: list[str]
    """What is put before each continuation."""
    logprobs: bool
    include_usage: bool


def router(service: Service) -> APIRouter:
    """The route."""
    made = APIRouter(tags=["completions"], route_class=JsonRoute)

    @made.post("/completions", response_model=Completion, responses=STREAM, summary="Continue texts")
    async def create(fields: CompletionFields, request: Request) -> Response:
        """Continue one text or several with a model that generates text."""
        asked, caller = understood(fields, service), caller_of(request)
        return await reply(
            request,
            service,
            caller,
            model=asked.model,
            requests=asked.requests,
            document=partial(_document, asked),
            events=partial(_stream, asked) if fields.stream else None,
        )

    return made


def understood(fields: CompletionFields, service: Service) -> Asked:
    """What is asked for.

    Raises:
        Refusal: "invalid", "unsupported" or "not_found".
    """
    refuse_unsupported(fields, {"suffix": ("",), "best_of": (fields.n or 1, 1)})
    model = service.model(fields.model)
    prompts = texts_or_ids(fields.prompt)
    if fields.echo and (fields.logprobs is not None or not all(isinstance(prompt, str) for prompt in prompts)):
        raise Refusal("unsupported", "echo goes with prompts of text and without logprobs", parameter="echo")
    count = fields.n or 1
    if len(prompts) * count > MOST_ANSWERS:
        raise Refusal(
            "invalid", f"{len(prompts)} prompts with {count} answers each; at most {MOST_ANSWERS} in one request"
        )
    request = TextRequest(
        id=named("cmpl"),
        prompt="",
        messages=None,
        sampling=sampling_of(
            fields,
            service.defaults(model.name),
            max_tokens=fields.max_tokens or USUAL_TOKENS,
            logprobs=fields.logprobs,
        ),
        stop=stops_of(fields),
        constraint=constraint_of(fields, fields.response_format),
        priority=fields.priority,
        deadline_seconds=fields.deadline_seconds,
    )
    return Asked(
        id=request.id,
        created=now(),
        model=model.name,
        requests=[each for prompt in prompts for each in several(replace(request, prompt=prompt), count)],
        prompts=len(prompts),
        echoes=[str(prompt) if fields.echo else "" for prompt in prompts for _ in range(count)],
        logprobs=fields.logprobs is not None,
        include_usage=fields.stream_options is not None and fields.stream_options.include_usage,
    )


def _document(asked: Asked, made: list[Whole]) -> dict[str, Any]:
    choices = [
        {
            "index": index,
            "text": asked.echoes[index] + whole.text,
            "logprobs": of_completion(whole.tokens, 0) if asked.logprobs else None,
            "finish_reason": FINISH_REASONS[whole.finished or "stop"],
        }
        for index, whole in enumerate(made)
    ]
    usage = usage_of(used([whole.usage for whole in made], asked.prompts))
    return {**_frame(asked), "choices": choices, "usage": usage}


async def _stream(asked: Asked, answers: AsyncGenerator[Numbered, None]) -> AsyncGenerator[bytes, None]:
    """The pieces of all continuations as events."""
    usages: list[Usage | None] = [None] * len(asked.requests)
    offsets = [0] * len(asked.requests)
    before = list(asked.echoes)
    async with aclosing(answers) as pieces:
        try:
            async for number, piece in pieces:
                refuse_nothing(piece.finished, piece.usage)
                text, before[number] = before[number] + piece.text, ""
                if text or piece.tokens or piece.finished is not None:
                    reason = None if piece.finished is None else FINISH_REASONS[piece.finished]
                    yield _chunk(asked, number, text, _reports(asked, piece.tokens, offsets[number]), reason)
                offsets[number] += sum(len(report.chosen.text) for report in piece.tokens)
                usages[number] = piece.usage or usages[number]
        except Refusal as refusal:
            yield event(body_of(refusal))
            return
    if asked.include_usage:
        yield event({**_frame(asked), "choices": [], "usage": usage_of(used(usages, asked.prompts))})
    yield DONE


def _reports(asked: Asked, tokens: tuple[TokenReport, ...], offset: int) -> dict[str, Any] | None:
    return of_completion(tokens, offset) if asked.logprobs else None


def _chunk(asked: Asked, number: int, text: str, reports: dict[str, Any] | None, reason: str | None) -> bytes:
    choice = {"index": number, "text": text, "logprobs": reports, "finish_reason": reason}
    document: dict[str, Any] = {**_frame(asked), "choices": [choice]}
    if asked.include_usage:
        document["usage"] = None
    return event(document)


def _frame(asked: Asked) -> dict[str, Any]:
    return {"id": asked.id, "object": "text_completion", "created": asked.created, "model": asked.model}
