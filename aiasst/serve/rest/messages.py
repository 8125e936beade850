"""Messages of a conversation as clients send them, to what a chat template reads. Knows no route."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from aiasst.serve.refusals import Refusal
from aiasst.tokenizer import Message

_TEXTS = ("text", "input_text", "output_text")


class Part(BaseModel):
    """A part of a message; only text is read."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: str
    text: str | None = None


class CalledFunction(BaseModel):
    """The function of a call, and its arguments as JSON."""

    model_config = ConfigDict(strict=True, extra="ignore")

    name: str
    arguments: str = "{}"


class ToolCall(BaseModel):
    """A call that the model made in an earlier turn."""

    model_config = ConfigDict(strict=True, extra="ignore")

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class MessageFields(BaseModel):
    """One turn; what answers have beside these (annotations, audio: null) may be sent back and is left alone."""

    model_config = ConfigDict(strict=True, extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


def read(messages: list[MessageFields], name: str = "messages") -> tuple[Message, ...]:
    """The messages of the field `name` for a chat template.

    Raises:
        Refusal: "unsupported": a part is an image or a sound; "invalid": a turn says nothing.
    """
    return tuple(_message(each, f"{name}.{index}") for index, each in enumerate(messages))


def text_of(content: str | list[Part] | None, where: str) -> str:
    """The text of a message's content; its parts are joined.

    Raises:
        Refusal: "unsupported": a part is no text.
    """
    if content is None or isinstance(content, str):
        return content or ""
    for index, part in enumerate(content):
        if part.type not in _TEXTS or part.text is None:
            raise Refusal(
                "unsupported",
                f"{where}.content.{index} is of type {part.type}; the models here read text",
                "send text alone",
                parameter=f"{where}.content.{index}",
            )
    return "".join(part.text or "" for part in content)


def _message(fields: MessageFields, where: str) -> Message:
    if fields.content is None and not (fields.role == "assistant" and fields.tool_calls):
        raise Refusal("invalid", f"{where} has no content", "write what was said", parameter=f"{where}.content")
    more: dict[str, Any] = {}
    if fields.name is not None:
        more["name"] = fields.name
    if fields.tool_call_id is not None:
        more["tool_call_id"] = fields.tool_call_id
    if fields.tool_calls:
        more["tool_calls"] = [_call(call) for call in fields.tool_calls]
    # "developer" is what newer models of OpenAI call the system; templates know the older word.
    role = "system" if fields.role == "developer" else fields.role
    return Message(role, text_of(fields.content, where), more)


def _call(call: ToolCall) -> dict[str, Any]:
    """Templates write the arguments as JSON themselves."""
    try:
        arguments = json.loads(call.function.arguments)
    except (ValueError, RecursionError):
        arguments = call.function.arguments
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}
