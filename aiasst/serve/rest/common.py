"""What routes share: who asks, how an answer is named, and the words for its end. Knows no engine."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from starlette.requests import HTTPConnection

from aiasst.engine.requests import Finished
from aiasst.engine.text import Usage
from aiasst.serve.service import Caller

FINISH_REASONS: dict[Finished, str] = {"stop": "stop", "length": "length", "deadline": "length", "cancelled": "stop"}
"""A deadline cuts an answer short as a limit of tokens does; OpenAI has no word of its own for it."""


class CachedFields(BaseModel):
    """Of the prompt."""

    cached_tokens: int
    """Tokens that were in the cache already."""


class UsageFields(BaseModel):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedFields


def usage_of(usage: Usage) -> dict[str, Any]:
    """The tokens of a request, as `UsageFields`."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def caller_of(connection: HTTPConnection) -> Caller:
    """Whom the guard found to ask."""
    caller = connection.scope.get("state", {}).get("caller")
    return caller if isinstance(caller, Caller) else Caller()


def texts_or_ids(given: str | Sequence[str | int | list[int]]) -> list[str | tuple[int, ...]]:
    """A text, the ids of one, or a list of either: as a list."""
    if isinstance(given, str):
        return [given]
    ids = tuple(each for each in given if isinstance(each, int))
    return (
        [ids]
        if ids
        else [each if isinstance(each, str) else tuple(each) for each in given if not isinstance(each, int)]
    )


def named(prefix: str) -> str:
    """An id for an answer."""
    return f"{prefix}-{uuid.uuid4().hex}"


def now() -> int:
    """Seconds since 1970."""
    return int(time.time())
