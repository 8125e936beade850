"""Fields of a request to what the engine is asked for: sampling, constraint, one request for each answer. Knows no route."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from aiasst.engine.constrain import Constraint
from aiasst.engine.requests import Sampling
from aiasst.engine.text import TextRequest
from aiasst.errors import PromptError
from aiasst.serve.refusals import Refusal
from aiasst.serve.rest.fields import ResponseFormat, SamplingFields

_SEEDS = 2**64
_CHOSEN = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty",
)  # fmt: skip


def sampling_of(fields: SamplingFields, defaults: Sampling, *, max_tokens: int, logprobs: int | None) -> Sampling:
    """The sampling of a request; `defaults` hold where it says nothing.

    Raises:
        Refusal: "invalid".
    """
    chosen: dict[str, Any] = {name: value for name in _CHOSEN if (value := getattr(fields, name)) is not None}
    if fields.logit_bias:
        chosen["logit_bias"] = {_token_id(key): bias for key, bias in fields.logit_bias.items()}
    seed = None if fields.seed is None else fields.seed % _SEEDS
    try:
        return dataclasses.replace(defaults, max_tokens=max_tokens, logprobs=logprobs, seed=seed, **chosen)
    except PromptError as error:
        raise Refusal("invalid", error.message, error.hint) from None


def constraint_of(fields: SamplingFields, response_format: ResponseFormat | None) -> Constraint | None:
    """What the answer must be.

    Raises:
        Refusal: "invalid": more than one is asked for, or a schema is missing.
    """
    found: list[Constraint] = []
    if response_format is not None and response_format.type == "json_object":
        found.append(Constraint("json_schema", '{"type": "object"}'))
    if response_format is not None and response_format.type == "json_schema":
        named = response_format.json_schema
        if named is None or named.schema_ is None:
            raise Refusal(
                "invalid", "a response_format of type json_schema needs a schema", parameter="response_format"
            )
        found.append(Constraint("json_schema", json.dumps(named.schema_)))
    if fields.regex is not None:
        found.append(Constraint("regex", fields.regex))
    if fields.grammar is not None:
        found.append(Constraint("grammar", fields.grammar))
    if len(found) > 1:
        raise Refusal("invalid", "response_format, regex and grammar exclude each other", "give one of them")
    return found[0] if found else None


def stops_of(fields: SamplingFields) -> tuple[str, ...]:
    """Strings before which the answer ends."""
    return (fields.stop,) if isinstance(fields.stop, str) else tuple(fields.stop or ())


def several(request: TextRequest, count: int) -> list[TextRequest]:
    """`count` requests for different answers to the same prompt: seeds follow the first one's."""
    seed = request.sampling.seed
    if seed is None or count == 1:
        return [request] * count
    return [
        dataclasses.replace(request, sampling=dataclasses.replace(request.sampling, seed=(seed + number) % _SEEDS))
        for number in range(count)
    ]


def _token_id(key: str) -> int:
    if not key.isascii() or not key.isdecimal() or len(key) > 10:
        raise Refusal("invalid", f"logit_bias names {key!r}, which is no token id", parameter="logit_bias")
    return int(key)
