"""Requests and answers in the keys of JSON, as prompt files and the service share them. Knows no file and no protocol.

Nothing is converted ("1" is no number), unknown keys are refused, and what is not there has the caller's default.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, NoReturn, Self

from pydantic import ConfigDict, Field, StrictStr

from aiasst.artifacts.document import Document
from aiasst.engine.constrain import Constraint, Kind
from aiasst.engine.requests import Sampling
from aiasst.engine.text import TokenReport, TokenText, Usage
from aiasst.errors import PromptError

_SAMPLING = {entry.name for entry in dataclasses.fields(Sampling)}
_KINDS: tuple[Kind, ...] = ("json_schema", "regex", "grammar")


class MessageFields(Document):
    """One turn of a conversation."""

    model_config = ConfigDict(strict=True)

    role: str
    content: str


class ParameterFields(Document):
    """How an answer is sampled, where it stops and what it must be."""

    model_config = ConfigDict(strict=True)

    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[Annotated[int, Field(strict=False)], float] | None = None
    logprobs: int | None = None
    seed: int | None = None
    stop: str | Annotated[tuple[StrictStr, ...], Field(strict=False)] | None = None
    json_schema: dict[str, Any] | bool | None = None
    regex: str | None = None
    grammar: str | None = None

    def sampling(self, defaults: Sampling) -> Sampling:
        """The sampling asked for, `defaults` where nothing is said.

        Raises:
            PromptError: a value outside its range.
        """
        return replace(defaults, **self.model_dump(exclude_none=True, include=_SAMPLING))

    def stops(self, defaults: tuple[str, ...] = ()) -> tuple[str, ...]:
        """The strings before which the answer ends."""
        if self.stop is None:
            return defaults
        return (self.stop,) if isinstance(self.stop, str) else self.stop

    def constraint(self, what: str) -> Constraint | None:
        """What the answer must be; `what` names the request in the error.

        Raises:
            PromptError: more than one kind is given.
        """
        given = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(given) > 1:
            raise PromptError(f"{what} has one of {_listed(_KINDS)}, not {_listed(given)}", "leave all but one out")
        if not given:
            return None
        value = getattr(self, given[0])
        # Keys stay in their order: it is the order of the answer's.
        return Constraint(given[0], value if isinstance(value, str) else json.dumps(value))


class UsageFields(Document):
    """Tokens of one answer."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int

    @classmethod
    def of(cls, usage: Usage) -> Self:
        """What is told of `usage`."""
        return cls(
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            completion_tokens=usage.completion_tokens,
        )


class TokenFields(Document):
    """A token and the natural logarithm of the probability that the model gave it."""

    id: int
    text: str
    logprob: float


class TokenReportFields(TokenFields):
    """A token of the answer, and the likeliest ones at its place."""

    top: tuple[TokenFields, ...]

    @classmethod
    def of(cls, report: TokenReport) -> Self:
        """What is told of `report`."""
        return cls(**_token(report.chosen), top=tuple(TokenFields(**_token(token)) for token in report.likeliest))


def json_object(text: bytes, what: str, hint: str) -> dict[str, Any]:
    """The JSON object in `text`; `what` names it in an error, `hint` says what it should be.

    Raises:
        PromptError: it is no JSON object, or holds text that is no Unicode (half a surrogate pair).
    """
    try:
        data = json.loads(text.decode("utf-8"), parse_constant=_refuse_constant)
        # A lone surrogate can be written in JSON, but neither tokenized nor stored.
        json.dumps(data, ensure_ascii=False).encode("utf-8")
    except UnicodeError:
        raise PromptError(f"{what} is not UTF-8 text", hint) from None
    except RecursionError:
        raise PromptError(f"{what} is nested too deeply", hint) from None
    except ValueError as error:
        where = f" at column {error.colno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else f": {error}"
        raise PromptError(f"{what} is not valid JSON{where}", hint) from None
    if not isinstance(data, dict):
        raise PromptError(f"{what} is no JSON object", hint)
    return data


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _token(token: TokenText) -> dict[str, Any]:
    return {"id": token.id, "text": token.text, "logprob": round(token.logprob, 6)}


def _listed(names: Sequence[str]) -> str:
    return " and ".join(f"'{name}'" for name in names)
