"""What requests for text have in common, field by field as OpenAI names them. Knows no engine.

A field of OpenAI's that changes nothing here is accepted and left alone; one that would change the answer and is not supported is
refused, as is one that nobody knows: a misspelt `max_token` must not go unnoticed.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from aiasst.serve.refusals import Refusal


class Strict(BaseModel):
    """Nothing is converted ("1" is no number), and unknown keys are refused."""

    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True)


class StreamOptions(Strict):
    """Of an answer that comes in pieces."""

    include_usage: bool = False
    """A last piece tells the tokens."""
    include_obfuscation: bool | None = None
    """Changes nothing here."""


class SchemaFields(Strict):
    """A JSON schema and its name."""

    name: str
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None
    """The answer is held to the schema whatever this says."""


class ResponseFormat(Strict):
    """What the answer must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaFields | None = None


class SamplingFields(Strict):
    """How tokens are chosen, and when an answer ends."""

    model: str
    """One of GET /v1/models."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """0: always the likeliest token. Without it the checkpoint's own recommendation holds, as for all of these."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024)] | None = None
    """Token id → what is added to its logit."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    """Answers to each prompt; each takes a place in the line."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # beyond OpenAI's
    top_k: Annotated[int, Field(ge=0)] | None = None
    """Only the so many likeliest tokens; 0: all. An extension, as are the fields below."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    priority: Annotated[int, Field(ge=-10, le=10)] = 0
    """Higher is answered first; a level is worth ten seconds of waiting."""
    deadline_seconds: Annotated[float, Field(gt=0)] | None = None
    """The answer ends then, wherever it is."""
    regex: str | None = None
    """The answer is a match of this regular expression."""
    grammar: str | None = None
    """The answer is a text of this Lark grammar."""
    # accepted, and of no effect on the answer
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prediction: Any = None


def refuse_unsupported(fields: BaseModel, neutral: dict[str, tuple[object, ...]]) -> None:
    """Refuse what would change the answer and is not supported: a field whose value is neither None nor one of `neutral`.

    Raises:
        Refusal: "unsupported".
    """
    for name, values in neutral.items():
        value = getattr(fields, name)
        if value is not None and value not in values:
            raise Refusal("unsupported", f"{name} is not supported here", "leave it out", parameter=name)
