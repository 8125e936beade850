"""What goes into the engine and what comes out of it, in token ids. Knows no text, no scheduler and no session."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from aiasst.errors import PromptError

Finished = Literal["stop", "length", "cancelled", "deadline"]
"""Why an answer ended.

"stop": at a stop id, a stop string or the end of its grammar. "length": cut short, by the limit of tokens (asked for, or
the context's) or because its grammar became too costly to follow. "cancelled": by whoever asked. "deadline": its time was up.
"""

MOST_ALTERNATIVES = 20
"""Tokens beside the chosen one whose probabilities a request may ask for; more would be a table, not an answer."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; the filters and their order are told in `sampling.py`.

    Raises:
        PromptError: a value outside its range.
    """

    max_tokens: int = 256
    temperature: float = 1.0
    """0 is greedy: the most likely token."""
    top_k: int = 0
    """0: no limit."""
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    """Over prompt and answer; 1: none."""
    frequency_penalty: float = 0.0
    """Taken off a token's logit as often as the answer has it."""
    presence_penalty: float = 0.0
    """Taken off a token's logit once the answer has it."""
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    """Added to the logits of these token ids, -100 to 100; -100 forbids the token as long as any other is possible."""
    logprobs: int | None = None
    """Tell each token's log probability, and those of this many likeliest ones. None: tell nothing."""
    seed: int | None = None
    """The same seed gives the same draws, alone or in a batch. None: a new one every time."""

    def __post_init__(self) -> None:
        _demand(_whole(self.max_tokens, 1), "max_tokens", self.max_tokens, "a whole number from 1")
        _demand(_number(self.temperature) and self.temperature >= 0, "temperature", self.temperature, "0 or more")
        _demand(_whole(self.top_k, 0), "top_k", self.top_k, "a whole number from 0 (0: no limit)")
        _demand(_number(self.top_p) and 0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        _demand(_number(self.min_p) and 0 <= self.min_p <= 1, "min_p", self.min_p, "from 0 to 1")
        penalty = self.repetition_penalty
        _demand(_number(penalty) and penalty > 0, "repetition_penalty", penalty, "above 0 (1: none)")
        for name in ("frequency_penalty", "presence_penalty"):
            value = getattr(self, name)
            _demand(_number(value) and -2 <= value <= 2, name, value, "from -2 to 2 (0: none)")
        for token, bias in self.logit_bias.items():
            _demand(_whole(token, 0), "a token id in logit_bias", token, "a whole number from 0")
            _demand(_number(bias) and -100 <= bias <= 100, f"logit_bias of token {token}", bias, "from -100 to 100")
        wanted = f"a whole number from 0 to {MOST_ALTERNATIVES}"
        holds = self.logprobs is None or (_whole(self.logprobs, 0) and self.logprobs <= MOST_ALTERNATIVES)
        _demand(holds, "logprobs", self.logprobs, wanted)
        _demand(self.seed is None or _whole(self.seed, 0), "seed", self.seed, "a whole number from 0")


class Guide(Protocol):
    """Which tokens may come next in one answer; made for one request and used up by it."""

    allowed: npt.NDArray[np.bool_]
    """[vocabulary]; at least one is allowed."""

    def accept(self, token: int) -> Finished | None:
        """Go on behind an allowed `token` that is no stop id; why the answer ends with it, if it does."""


@dataclass(frozen=True)
class TokenChances:
    """Natural logarithms of what the model itself held likely at one place, before any penalty, filter or grammar."""

    chosen: float
    """Of the token that was taken."""
    likeliest: tuple[tuple[int, float], ...]
    """(token, log probability), falling; as many as were asked for."""


@dataclass(frozen=True)
class Request:
    """A prompt in ids, to be continued until a stop id or the limit of tokens.

    Raises:
        PromptError: a priority or deadline outside its range.
    """

    id: str
    prompt: tuple[int, ...]
    sampling: Sampling
    stop_ids: tuple[int, ...] = ()
    guide: Guide | None = None
    """Holds the answer to a grammar."""
    priority: int = 0
    """From -10 to 10, higher first; what one level is worth is told in `scheduler.py`. The range bounds how long anyone waits."""
    deadline_seconds: float | None = None
    """Seconds after `submit` at which the answer ends with "deadline", wherever it is."""

    def __post_init__(self) -> None:
        priority, deadline = self.priority, self.deadline_seconds
        _demand(_whole(priority, -10) and priority <= 10, "priority", priority, "a whole number from -10 to 10")
        _demand(deadline is None or (_number(deadline) and deadline > 0), "deadline_seconds", deadline, "above 0")


@dataclass(frozen=True)
class Event:
    """One token of an answer, its end, or both at once. A stop id ends an answer and is no token of it."""

    request_id: str
    token: int | None
    finished: Finished | None
    cached_tokens: int = 0
    """Tokens of the prompt that were found in the cache and not computed again."""
    chances: TokenChances | None = None
    """Of `token`, where the request asked for log probabilities."""
    drafted_tokens: int = 0
    """Tokens of the answer that were drafted so far, see `speculate.py`."""
    accepted_tokens: int = 0
    """Those of them that the answer has."""


def _demand(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise PromptError(f"{name} is {value!r}", f"{name} must be {wanted}")


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
