"""POST /v1/responses in its form for text, whole or as its stream of events; GET and DELETE of what was kept. Knows no engine."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from aiasst.engine.text import TextRequest, Usage
from aiasst.serve.refusals import Refusal
from aiasst.serve.rest import messages
from aiasst.serve.rest.answering import Numbered, Whole, refuse_nothing
from aiasst.serve.rest.asked import constraint_of, sampling_of, stops_of
from aiasst.serve.rest.bodies import JsonRoute
from aiasst.serve.rest.common import caller_of, named, now
from aiasst.serve.rest.errors import body_of
from aiasst.serve.rest.fields import ResponseFormat, SamplingFields, SchemaFields, Strict, refuse_unsupported
from aiasst.serve.rest.kept import Kept, KeptResponse
from aiasst.serve.rest.reply import reply
from aiasst.serve.rest.sse import STREAM, event
from aiasst.serve.service import Caller, Service
from aiasst.tokenizer import Message

USUAL_TOKENS = 1024
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "tools": ([],),
    "tool_choice": ("auto", "none"),
    "truncation": ("disabled",),
    "include": ([],),
    "background": (False,),
    "conversation": (),
    "prompt": (),
    "reasoning": ({}, {"effort": None}, {"effort": None, "summary": None}, {"effort": "none"}),
    "top_logprobs": (0,),
}


class TextFormat(Strict):
    """What the answer must be."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextOptions(Strict):
    """Of the answer's text."""

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class InputItem(BaseModel):
    """A turn of the conversation; an answer's own item may be sent back."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: str = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[messages.Part] | None = None


class ResponseFields(SamplingFields):
    """A request."""

    input: str | Annotated[list[InputItem], Field(min_length=1)]
    """What the user says, or a conversation."""
    instructions: str | None = None
    """The system message; that of an earlier response does not hold on."""
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    """Without it 1,024."""
    previous_response_id: str | None = None
    """Go on behind a response that was stored; they are kept in memory, as long as there is room."""
    text: TextOptions | None = None
    # of no effect without tools
    parallel_tool_calls: bool | None = None
    max_tool_calls: int | None = None
    # refused unless they say nothing
    tools: Any = None
    tool_choice: Any = None
    truncation: str | None = None
    include: list[str] | None = None
    background: bool | None = None
    conversation: Any = None
    prompt: Any = None
    reasoning: Any = None
    top_logprobs: int | None = None


class OutputText(BaseModel):
    """A part of an answer."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[Any]


class OutputMessage(BaseModel):
    """An answer."""

    id: str
    type: Literal["message"]
    status: Literal["in_progress", "completed", "incomplete"]
    role: Literal["assistant"]
    content: list[OutputText]


class InputDetails(BaseModel):
    """Of the prompt."""

    cached_tokens: int


class OutputDetails(BaseModel):
    """Of the answer."""

    reasoning_tokens: int


class ResponseUsage(BaseModel):
    """Tokens."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class IncompleteDetails(BaseModel):
    """Why an answer is cut short."""

    reason: Literal["max_output_tokens"]


class ResponseBody(BaseModel):
    """A response."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete", "in_progress", "failed"]
    model: str
    output: list[OutputMessage]
    incomplete_details: IncompleteDetails | None
    usage: ResponseUsage | None
    previous_response_id: str | None


class Deleted(BaseModel):
    """What is said of a response that was forgotten."""

    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


@dataclass
class _Asked:
    """A request as it was understood."""

    fields: ResponseFields
    id: str
    created: int
    model: str
    request: TextRequest
    conversation: tuple[Message, ...]
    """What was said up to the answer, without instructions."""
    item: str = field(default_factory=lambda: named("msg"))
    number: int = -1
    """Of the last event."""


def router(service: Service) -> APIRouter:
    """The routes, with a memory of their own for what is stored."""
    made, kept = APIRouter(tags=["responses"], route_class=JsonRoute), Kept()

    @made.post("/responses", response_model=ResponseBody, responses=STREAM, summary="Answer, and remember")
    async def create(fields: ResponseFields, request: Request) -> Response:
        """Answer a text or a conversation with a model that has a chat template."""
        caller = caller_of(request)
        asked = _understood(fields, service, kept, caller)
        return await reply(
            request,
            service,
            caller,
            model=asked.model,
            requests=[asked.request],
            document=lambda answers: _finished(asked, answers[0], kept, caller),
            events=partial(_stream, asked, kept, caller) if fields.stream else None,
        )

    @made.get("/responses/{response_id}", response_model=ResponseBody, summary="A response that was stored")
    async def read(response_id: str, request: Request) -> Response:
        """A response that was stored, as long as it is remembered."""
        found = kept.get(caller_of(request).name, response_id)
        if found is None:
            raise _forgotten(response_id, "response_id", "not_found")
        return JSONResponse(found.document)

    @made.delete("/responses/{response_id}", summary="Forget a response")
    async def forget(response_id: str, request: Request) -> Deleted:
        """Forget a response that was stored."""
        if not kept.drop(caller_of(request).name, response_id):
            raise _forgotten(response_id, "response_id", "not_found")
        return Deleted(id=response_id)

    return made


def _forgotten(response_id: str, parameter: str, reason: Literal["not_found", "invalid"]) -> Refusal:
    return Refusal(
        reason,
        f"there is no response {response_id!r} here",
        "responses are kept in memory for a while, where store is not false: send the whole conversation",
        parameter=parameter,
    )


def _understood(fields: ResponseFields, service: Service, kept: Kept, caller: Caller) -> _Asked:
    refuse_unsupported(fields, _NEUTRAL)
    model = service.model(fields.model)
    before: tuple[Message, ...] = ()
    if fields.previous_response_id is not None:
        previous = kept.get(caller.name, fields.previous_response_id)
        if previous is None:
            raise _forgotten(fields.previous_response_id, "previous_response_id", "invalid")
        before = previous.messages
    conversation = (*before, *_said(fields))
    system = () if fields.instructions is None else (Message("system", fields.instructions),)
    limit = fields.max_output_tokens or USUAL_TOKENS
    request = TextRequest(
        id=named("resp"),
        prompt=None,
        messages=(*system, *conversation),
        sampling=sampling_of(fields, service.defaults(model.name), max_tokens=limit, logprobs=None),
        stop=stops_of(fields),
        constraint=constraint_of(fields, _format(fields.text)),
        priority=fields.priority,
        deadline_seconds=fields.deadline_seconds,
    )
    return _Asked(fields, request.id, now(), model.name, request, conversation)


def _said(fields: ResponseFields) -> list[Message]:
    if isinstance(fields.input, str):
        return [Message("user", fields.input)]
    said = []
    for index, item in enumerate(fields.input):
        if item.type != "message" or item.role is None:
            raise Refusal(
                "unsupported",
                f"input.{index} is of type {item.type}; messages with a role are read",
                "send text alone",
                parameter=f"input.{index}",
            )
        role = "system" if item.role == "developer" else item.role
        said.append(Message(role, messages.text_of(item.content, f"input.{index}")))
    return said


def _format(text: TextOptions | None) -> ResponseFormat | None:
    if text is None or text.format is None:
        return None
    asked = text.format
    schema = None
    if asked.type == "json_schema":
        schema = SchemaFields.model_validate({"name": asked.name or "answer", "schema": asked.schema_})
    return ResponseFormat(type=asked.type, json_schema=schema)


def _finished(asked: _Asked, answer: Whole, kept: Kept, caller: Caller) -> dict[str, Any]:
    """The document of a complete answer, which is kept where it may be."""
    cut = answer.finished in ("length", "deadline")
    document = _document(
        asked, "incomplete" if cut else "completed", [_item(asked, answer.text, cut=cut)], answer.usage
    )
    if asked.fields.store is not False:
        said = (*asked.conversation, Message("assistant", answer.text))
        kept.put(caller.name, asked.id, KeptResponse(document, said))
    return document


def _document(
    asked: _Asked, status: str, output: list[dict[str, Any]], usage: Usage | None, error: dict[str, Any] | None = None
) -> dict[str, Any]:
    fields, sampling = asked.fields, asked.request.sampling
    text = {"format": {"type": "text"}}
    if fields.text is not None and fields.text.format is not None:
        text["format"] = fields.text.format.model_dump(by_alias=True, exclude_none=True)
    return {
        "id": asked.id,
        "object": "response",
        "created_at": asked.created,
        "status": status,
        "error": error,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": fields.instructions,
        "max_output_tokens": fields.max_output_tokens,
        "metadata": fields.metadata or {},
        "model": asked.model,
        "output": output,
        "parallel_tool_calls": True,
        "previous_response_id": fields.previous_response_id,
        "reasoning": {"effort": None, "summary": None},
        "store": fields.store is not False,
        "temperature": sampling.temperature,
        "text": text,
        "tool_choice": "auto",
        "tools": [],
        "top_p": sampling.top_p,
        "truncation": "disabled",
        "usage": None if usage is None else _usage(usage),
        "user": fields.user,
    }


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _item(asked: _Asked, text: str | None, *, cut: bool = False) -> dict[str, Any]:
    """The answer's item of the output; without a text it has only begun."""
    status = "in_progress" if text is None else "incomplete" if cut else "completed"
    content = [] if text is None else [_part(text)]
    return {"id": asked.item, "type": "message", "status": status, "role": "assistant", "content": content}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


async def _stream(
    asked: _Asked, kept: Kept, caller: Caller, answers: AsyncGenerator[Numbered, None]
) -> AsyncGenerator[bytes, None]:
    """The events of a response, in the order of OpenAI's."""
    begun = _document(asked, "in_progress", [], None)
    place = {"item_id": asked.item, "output_index": 0, "content_index": 0}
    yield _event(asked, "response.created", {"response": begun})
    yield _event(asked, "response.in_progress", {"response": begun})
    yield _event(asked, "response.output_item.added", {"output_index": 0, "item": _item(asked, None)})
    yield _event(asked, "response.content_part.added", {**place, "part": _part("")})
    answer = Whole()
    async with aclosing(answers) as pieces:
        try:
            async for _, piece in pieces:
                answer.add(piece)
                refuse_nothing(piece.finished, piece.usage)
                if piece.text:
                    yield _event(asked, "response.output_text.delta", {**place, "delta": piece.text, "logprobs": []})
        except Refusal as refusal:
            wrong = body_of(refusal)["error"]
            error = {"code": wrong["code"], "message": wrong["message"]}
            failed = _document(asked, "failed", [], None, error)
            yield _event(asked, "response.failed", {"response": failed})
            return
    document = _finished(asked, answer, kept, caller)
    yield _event(asked, "response.output_text.done", {**place, "text": answer.text, "logprobs": []})
    yield _event(asked, "response.content_part.done", {**place, "part": _part(answer.text)})
    yield _event(asked, "response.output_item.done", {"output_index": 0, "item": document["output"][0]})
    yield _event(asked, f"response.{document['status']}", {"response": document})


def _event(asked: _Asked, kind: str, more: dict[str, Any]) -> bytes:
    asked.number += 1
    return event({"type": kind, "sequence_number": asked.number, **more}, kind)
