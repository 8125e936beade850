"""POST /v1/chat/completions: messages in, an answer out, whole or in pieces. Knows no engine."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from aiasst.engine.requests import MOST_ALTERNATIVES, Finished
from aiasst.engine.text import TextEvent, TextRequest, Usage
from aiasst.serve.refusals import Refusal
from aiasst.serve.rest.answering import Numbered, Whole, refuse_nothing, used
from aiasst.serve.rest.asked import constraint_of, sampling_of, several, stops_of
from aiasst.serve.rest.bodies import JsonRoute
from aiasst.serve.rest.common import FINISH_REASONS, UsageFields, caller_of, named, now, usage_of
from aiasst.serve.rest.errors import body_of
from aiasst.serve.rest.fields import ResponseFormat, SamplingFields, refuse_unsupported
from aiasst.serve.rest.logprobs import of_chat
from aiasst.serve.rest.messages import MessageFields, read
from aiasst.serve.rest.reply import reply
from aiasst.serve.rest.sse import DONE, STREAM, event
from aiasst.serve.rest.tools import (
    Call,
    CallFilter,
    NamedTool,
    Tool,
    ToolChoice,
    for_template,
    forced,
    offered,
    parsed,
)
from aiasst.serve.service import Service

USUAL_TOKENS = 1024
"""Of an answer where the request sets no limit: memory is set aside for as many as it may have."""
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "modalities": (["text"],),
    "audio": (),
    "functions": (),
    "function_call": ("none",),
    "reasoning_effort": (),
    "verbosity": ("medium",),
    "web_search_options": (),
}
_RESERVED = frozenset({"messages", "tools", "add_generation_prompt"})


class ChatFields(SamplingFields):
    """A request."""

    messages: Annotated[list[MessageFields], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Of each answer; without it 1,024, and never more than the context has room for."""
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    """The newer name of max_tokens."""
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = None
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    """False: of several calls the first alone is told."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Switches of the model's own chat template, such as enable_thinking. An extension."""
    # refused unless they say nothing
    modalities: list[str] | None = None
    audio: Any = None
    functions: Any = None
    function_call: Any = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    web_search_options: Any = None


class FunctionCall(BaseModel):
    """A function and its arguments as JSON."""

    name: str
    arguments: str


class ToolCall(BaseModel):
    """A call that the model asks for."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class AnswerMessage(BaseModel):
    """What the model says."""

    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    tool_calls: list[ToolCall] | None = None


class Choice(BaseModel):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: dict[str, Any] | None = None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(BaseModel):
    """All answers to a request."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: UsageFields


@dataclass(frozen=True)
class Asked:
    """A request as it was understood."""

    id: str
    created: int
    model: str
    requests: list[TextRequest]
    logprobs: bool
    functions: tuple[str, ...]
    """Names of those that may be called."""
    one_call: bool
    named_call: bool
    """A call of the one function that the request names; its end is then said to be a usual one."""
    include_usage: bool


def router(service: Service) -> APIRouter:
    """The route."""
    made = APIRouter(tags=["chat"], route_class=JsonRoute)

    @made.post("/chat/completions", response_model=ChatCompletion, responses=STREAM, summary="Answer messages")
    async def create(fields: ChatFields, request: Request) -> Response:
        """Answer a conversation with a model that has a chat template."""
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


def understood(fields: ChatFields, service: Service) -> Asked:
    """What is asked for.

    Raises:
        Refusal: "invalid", "unsupported" or "not_found".
    """
    refuse_unsupported(fields, _NEUTRAL)
    model = service.model(fields.model)
    functions = offered(fields.tools, fields.tool_choice)
    constraint, call = constraint_of(fields, fields.response_format), forced(functions, fields.tool_choice)
    if constraint is not None and call is not None:
        raise Refusal("invalid", "tool_choice and response_format exclude each other", "give one of them")
    request = TextRequest(
        id=named("chatcmpl"),
        prompt=None,
        messages=read(fields.messages),
        sampling=sampling_of(
            fields,
            service.defaults(model.name),
            max_tokens=fields.max_completion_tokens or fields.max_tokens or USUAL_TOKENS,
            logprobs=_alternatives(fields),
        ),
        stop=stops_of(fields),
        constraint=constraint or call,
        priority=fields.priority,
        deadline_seconds=fields.deadline_seconds,
        template=_template(fields, functions),
    )
    return Asked(
        id=request.id,
        created=now(),
        model=model.name,
        requests=several(request, fields.n or 1),
        logprobs=bool(fields.logprobs),
        functions=tuple(tool.function.name for tool in functions),
        one_call=fields.parallel_tool_calls is False,
        named_call=isinstance(fields.tool_choice, NamedTool),
        include_usage=fields.stream_options is not None and fields.stream_options.include_usage,
    )


def _alternatives(fields: ChatFields) -> int | None:
    if fields.top_logprobs is not None and not fields.logprobs:
        raise Refusal("invalid", "top_logprobs needs logprobs to be true", parameter="top_logprobs")
    return (fields.top_logprobs or 0) if fields.logprobs else None


def _template(fields: ChatFields, functions: list[Tool]) -> dict[str, Any]:
    own = fields.chat_template_kwargs or {}
    if taken := sorted(_RESERVED & own.keys()):
        raise Refusal(
            "invalid", f"chat_template_kwargs may not set {taken[0]}", "leave it out", parameter="chat_template_kwargs"
        )
    return {**own, "tools": for_template(functions)} if functions else dict(own)


def _document(asked: Asked, made: list[Whole]) -> dict[str, Any]:
    choices = []
    for index, whole in enumerate(made):
        text, calls = parsed(whole.text, asked.functions) if asked.functions else (whole.text, [])
        calls = calls[:1] if asked.one_call else calls
        message: dict[str, Any] = {"role": "assistant", "content": text or None if calls else text, "refusal": None}
        if calls:
            message["tool_calls"] = [call.document() for call in calls]
        choices.append(
            {
                "index": index,
                "message": message,
                "logprobs": of_chat(whole.tokens) if asked.logprobs else None,
                "finish_reason": _reason(asked, whole.finished, bool(calls)),
            }
        )
    return {
        "id": asked.id,
        "object": "chat.completion",
        "created": asked.created,
        "model": asked.model,
        "choices": choices,
        "usage": usage_of(used([whole.usage for whole in made], 1)),
    }


def _reason(asked: Asked, finished: Finished | None, called: bool) -> str:
    if called and not asked.named_call:
        return "tool_calls"
    return FINISH_REASONS[finished or "stop"]


async def _stream(asked: Asked, answers: AsyncGenerator[Numbered, None]) -> AsyncGenerator[bytes, None]:
    """The pieces of all answers as events, each answer's first with its role."""
    filters = [CallFilter(asked.functions) for _ in asked.requests]
    usages: list[Usage | None] = [None] * len(asked.requests)
    begun: set[int] = set()
    async with aclosing(answers) as pieces:
        try:
            async for number, piece in pieces:
                if number not in begun:
                    begun.add(number)
                    yield _chunk(asked, number, {"role": "assistant", "content": ""})
                for made in _pieces(asked, number, piece, filters[number]):
                    yield made
                usages[number] = piece.usage or usages[number]
        except Refusal as refusal:
            yield event(body_of(refusal))
            return
    if asked.include_usage:
        yield event({**_frame(asked), "choices": [], "usage": usage_of(used(usages, 1))})
    yield DONE


def _pieces(asked: Asked, number: int, piece: TextEvent, calls_in: CallFilter) -> list[bytes]:
    """The events that one piece of an answer becomes."""
    refuse_nothing(piece.finished, piece.usage)
    text = calls_in.feed(piece.text)
    calls: list[Call] = []
    if piece.finished is not None:
        more, calls = calls_in.end()
        text += more
    made = []
    if text or piece.tokens:
        reports = of_chat(piece.tokens) if asked.logprobs else None
        made.append(_chunk(asked, number, {"content": text}, reports))
    for index, call in enumerate(calls[:1] if asked.one_call else calls):
        made.append(_chunk(asked, number, {"tool_calls": [{"index": index, **call.document()}]}))
    if piece.finished is not None:
        made.append(_chunk(asked, number, {}, None, _reason(asked, piece.finished, bool(calls))))
    return made


def _chunk(
    asked: Asked,
    number: int,
    delta: dict[str, Any],
    reports: dict[str, Any] | None = None,
    finish_reason: str | None = None,
) -> bytes:
    choice = {"index": number, "delta": delta, "logprobs": reports, "finish_reason": finish_reason}
    document: dict[str, Any] = {**_frame(asked), "choices": [choice]}
    if asked.include_usage:
        document["usage"] = None
    return event(document)


def _frame(asked: Asked) -> dict[str, Any]:
    return {"id": asked.id, "object": "chat.completion.chunk", "created": asked.created, "model": asked.model}
