"""The chat template: messages to the text that a model was trained on. Knows no ids.

A template is a jinja2 program from somebody's checkpoint, so it runs in jinja2's immutable sandbox with bounds on what it
may loop over and build. Language and helpers are those of Hugging Face transformers ("Chat templates" in its
documentation): trim_blocks, lstrip_blocks, break/continue, raise_exception, strftime_now, tojson, {% generation %}.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from aiasst.artifacts.document import read_text
from aiasst.errors import ArtifactError, PromptError

TEMPLATE_NAME = "chat_template.jinja"
MAX_CHARACTERS = 16_000_000
"""Of a rendered chat, and of any text that a template builds on its way: far above every context, far below the memory."""
MAX_ITERATIONS = 1_000_000
"""Of all `range` loops of one rendering together."""
_WIDE_FIELD = re.compile(r"%[^a-zA-Z%]*(\d{5}|\*)")
"""A field of five digits' width, or of a width given as a value, in a %-format."""
_HINT = "use /system, /reset or prompts without a template, or mend chat_template.jinja in the folder"


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str
    more: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """What a template may know of a turn beside these: tool_calls, tool_call_id, name."""


def find_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    """The source of the folder's chat template: its own file, or the entry of tokenizer_config.json; None where there is none.

    Of several named templates the one called "default" is taken, else the first.

    Raises:
        ArtifactError: an entry that is no template.
    """
    file = folder / TEMPLATE_NAME
    if file.is_file():
        return read_text(file, "chat template", _HINT)
    entry = tokenizer_config.get("chat_template")
    if entry is None or isinstance(entry, str):
        return entry
    try:
        named = {str(item["name"]): str(item["template"]) for item in entry}
    except (TypeError, KeyError):
        raise ArtifactError("chat_template in tokenizer_config.json is no text and no list of them", _HINT) from None
    return named.get("default", next(iter(named.values()), None))


@dataclass(frozen=True)
class ChatTemplate:
    """A parsed template with the special tokens that it may name."""

    program: jinja2.Template
    environment: _Environment
    special_tokens: Mapping[str, str]
    variables: frozenset[str] = frozenset()
    """What it asks to be given: messages, add_generation_prompt, perhaps tools, and switches of its own."""

    @classmethod
    def parse(cls, source: str, special_tokens: Mapping[str, str]) -> ChatTemplate:
        """Parse `source`.

        Raises:
            ArtifactError: it is no jinja2 template.
        """
        environment = _Environment()
        try:
            variables = frozenset(meta.find_undeclared_variables(environment.parse(source)))
            return cls(environment.from_string(source), environment, special_tokens, variables)
        except jinja2.TemplateSyntaxError as error:
            raise ArtifactError(f"the chat template is broken (line {error.lineno}: {error.message})", _HINT) from error

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] = MappingProxyType({}),
    ) -> str:
        """`messages` as text; with `add_generation_prompt` it ends where the answer begins.

        `variables`: what the template is told beside the messages, as tools and its own switches.

        Raises:
            PromptError: the template refuses the messages (raise_exception), with its words, or what it makes is too long.
            ArtifactError: it fails on its own account.
        """
        self.environment.iterations = 0
        pieces = self.program.generate(
            {
                "tools": None,
                "documents": None,
                **variables,
                **self.special_tokens,
                "messages": [
                    {**message.more, "role": message.role, "content": message.content} for message in messages
                ],
                "add_generation_prompt": add_generation_prompt,
            }
        )
        try:
            return _bounded(pieces)
        except _RefusedError as error:
            raise PromptError(f"the chat template refuses these messages: {error}", _HINT) from error
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
            raise ArtifactError(f"the chat template fails: {error}", _HINT) from error


class _RefusedError(jinja2.TemplateError):
    """The template called raise_exception."""


class _Environment(ImmutableSandboxedEnvironment):
    """jinja2 as transformers sets it up, and bounded."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.iterations = 0
        self.filters["tojson"] = _to_json
        self.globals |= {"raise_exception": _raise, "strftime_now": _now, "range": self._range}

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """One arithmetic operation, refused where it would build something huge."""
        if operator == "**":
            raise jinja2.TemplateError("the operator ** is not allowed here")
        if operator == "%" and isinstance(left, str) and _WIDE_FIELD.search(left):
            raise jinja2.TemplateError("it builds a text that is too long")
        if operator == "*" and _length(left) * _repeats(right) + _length(right) * _repeats(left) > MAX_CHARACTERS:
            raise jinja2.TemplateError("it builds a text that is too long")
        if operator == "+" and _length(left) + _length(right) > MAX_CHARACTERS:
            raise jinja2.TemplateError("it builds a text that is too long")
        return super().call_binop(context, operator, left, right)

    def _range(self, *arguments: int) -> range:
        numbers = range(*arguments)
        self.iterations += len(numbers)
        if self.iterations > MAX_ITERATIONS:
            raise jinja2.TemplateError("it loops too often")
        return numbers


class _Generation(Extension):
    """{% generation %} … {% endgeneration %} marks the assistant's text for training; here its body is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares the attribute so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The body of the block."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _bounded(pieces: Any) -> str:
    made: list[str] = []
    total = 0
    for piece in pieces:
        total += len(piece)
        if total > MAX_CHARACTERS:
            raise jinja2.TemplateError(f"it makes more than {MAX_CHARACTERS:,} characters")
        made.append(piece)
    return "".join(made)


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple) else 0


def _repeats(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes <, > and & for HTML, which would change the prompt.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise _RefusedError(message)


def _now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)
