"""Calls of functions: tools as a chat template reads them, and calls as a model writes them. Knows no route.

Families of models write calls in their own ways; these are understood, whatever the model is:

    <tool_call>{"name": …, "arguments": {…}}</tool_call>      Qwen, Hermes, SmolLM (the JSON between tags, one a call)
    [TOOL_CALLS] [{"name": …, "arguments": {…}}]              Mistral, Granite, Phi (a list, behind a mark or without)
    {"name": …, "parameters": {…}}                            Llama 3 (the whole answer is the call, perhaps several)

A call is one of a function that the request names; all else is text.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from aiasst.engine.constrain import Constraint
from aiasst.serve.refusals import Refusal
from aiasst.serve.rest.fields import Strict

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_MARKS = (_OPEN, "[TOOL_CALLS]", "<|tool_call|>", "<|python_tag|>")
_BLOCK = re.compile(re.escape(_OPEN) + r"(.*?)(?:" + re.escape(_CLOSE) + r"|\Z)", re.DOTALL)
_SEPARATORS = " \t\r\n;,"
_SPACING = {"whitespace_flexible": False, "whitespace_pattern": "", "item_separator": ", ", "key_separator": ": "}
"""Of calls that must be made: as models were trained to write them, and no room for anything else (llguidance's own key)."""


class FunctionFields(Strict):
    """A function that the model may call."""

    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_-]+$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """JSON schema of its arguments."""
    strict: bool | None = None


class Tool(Strict):
    """Something that the model may use."""

    type: Literal["function"]
    function: FunctionFields


class NamedFunction(Strict):
    """The name of a function."""

    name: str


class NamedTool(Strict):
    """The function that is to be called."""

    type: Literal["function"]
    function: NamedFunction


ToolChoice = Literal["none", "auto", "required"] | NamedTool


@dataclass(frozen=True)
class Call:
    """One call of a function."""

    name: str
    arguments: str
    """As JSON."""
    id: str

    def document(self) -> dict[str, Any]:
        """As OpenAI's answers have it."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


def offered(tools: Sequence[Tool] | None, choice: ToolChoice | None) -> list[Tool]:
    """The tools that the model is to know of.

    Raises:
        Refusal: "invalid": the choice names none of them.
    """
    if not tools:
        if choice is not None and choice not in ("none", "auto"):
            raise Refusal("invalid", "tool_choice asks for a call, and there are no tools", parameter="tool_choice")
        return []
    if choice == "none":
        return []
    if isinstance(choice, NamedTool):
        named = [tool for tool in tools if tool.function.name == choice.function.name]
        if not named:
            raise Refusal(
                "invalid", f"tool_choice names {choice.function.name}, which is not in tools", parameter="tool_choice"
            )
    return list(tools)


def for_template(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """The tools as chat templates of Hugging Face read them."""
    return [tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in tools]


def forced(tools: Sequence[Tool], choice: ToolChoice | None) -> Constraint | None:
    """What holds the answer to a call, where one must be made: its name, and arguments by its own schema."""
    if choice == "required":
        callable_ = list(tools)
    elif isinstance(choice, NamedTool):
        callable_ = [tool for tool in tools if tool.function.name == choice.function.name]
    else:
        return None
    schemas = [_schema(tool.function) for tool in callable_]
    whole = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    return Constraint("json_schema", json.dumps({**whole, "x-guidance": _SPACING}))


class CallFilter:
    """Passes an answer's text through, and holds back what may be calls until its end."""

    def __init__(self, names: Collection[str]) -> None:
        """`names`: of the functions that may be called; without any, all is text."""
        self._names = frozenset(names)
        self._held = ""
        self._shown = False
        self._holds = False
        """Whether all that comes is held back to the end."""

    def feed(self, text: str) -> str:
        """What may be shown now."""
        if not self._names:
            return text
        self._held += text
        if self._holds:
            return ""
        if not self._shown:
            begin = self._held.lstrip()
            if begin[:1] in ("", "{", "["):
                self._holds = begin != ""
                return ""
        found = [at for mark in _MARKS if (at := self._held.find(mark)) >= 0]
        if found:
            self._holds = True
            cut = min(found)
        else:
            cut = len(self._held) - max(_overlap(self._held, mark) for mark in _MARKS)
        shown, self._held = self._held[:cut], self._held[cut:]
        self._shown = self._shown or bool(shown)
        return shown

    def end(self) -> tuple[str, list[Call]]:
        """The rest of the text, and the calls."""
        held, self._held = self._held, ""
        text, calls = parsed(held, self._names)
        return (text, calls) if calls else (held, [])


def parsed(text: str, names: Collection[str]) -> tuple[str, list[Call]]:
    """The text of an answer without its calls, and the calls of functions called `names`."""
    blocks = _BLOCK.findall(text)
    if blocks:
        calls = [call for block in blocks for call in _calls_in(block, names)]
        return (_BLOCK.sub("", text).strip(), calls) if calls else (text, [])
    mark = next((mark for mark in _MARKS if mark in text), None)
    before, _, behind = ("", "", text) if mark is None else text.partition(mark)
    calls = _calls_in(behind, names)
    return (before.strip(), calls) if calls else (text, [])


def _calls_in(text: str, names: Collection[str]) -> list[Call]:
    """The calls that make up the whole of `text`; none where it is anything else."""
    decoder, found, at = json.JSONDecoder(), [], 0
    while at < len(text := text.strip(_SEPARATORS)) and text[at] in "{[":
        try:
            value, at = decoder.raw_decode(text, at)
        except (json.JSONDecodeError, RecursionError):
            return []
        calls = [_call(entry, names) for entry in (value if isinstance(value, list) else [value])]
        if None in calls:
            return []
        found += [call for call in calls if call is not None]
        while at < len(text) and text[at] in _SEPARATORS:
            at += 1
    return found if at >= len(text) else []


def _call(value: object, names: Collection[str]) -> Call | None:
    if not isinstance(value, dict):
        return None
    inner = value["function"] if isinstance(value.get("function"), dict) else value
    name, arguments = inner.get("name"), inner.get("arguments", inner.get("parameters", {}))
    if name not in names:
        return None
    written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return Call(str(name), written, f"call_{uuid.uuid4().hex[:24]}")


def _schema(function: FunctionFields) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "name": {"const": function.name},
            "arguments": function.parameters or {"type": "object"},
        },
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of `text` that is a beginning of `mark`."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:n])), 0)
