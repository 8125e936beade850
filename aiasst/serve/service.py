"""What every protocol asks of: requests in, pieces of answers out, models and their state. An interface; knows no protocol."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from aiasst.engine.engine import EngineStats
from aiasst.engine.requests import Sampling
from aiasst.engine.text import TextEvent, TextRequest

Kind = Literal["text-generation", "encoder"]
State = Literal["unloaded", "loading", "ready", "unloading", "failed"]


@dataclass(frozen=True)
class Caller:
    """Who asks: the name of the API key, or "" where none is needed."""

    name: str = ""


@dataclass(frozen=True)
class ModelState:
    """A model that can be asked, and how it is."""

    name: str
    """What requests call it: the name of its folder unless said otherwise."""
    kind: Kind
    task: str
    state: State
    problem: str
    """Why it is "failed", in words; else ""."""
    created: int
    """Seconds since 1970 at which its folder was written."""
    weight_bytes: int
    context_length: int
    """Tokens of prompt and answer together; of the folder's manifest until the model is loaded."""
    has_chat_template: bool
    running: int
    """Requests under way."""
    waiting: int
    """Requests in line."""
    stats: EngineStats | None
    """Of a loaded decoder; None else."""


@dataclass(frozen=True)
class Vectors:
    """What an encoder gives."""

    values: npt.NDArray[np.float32]
    """[texts, size]."""
    tokens: int
    """Of all texts together."""


class Service(Protocol):
    """The models behind every protocol. All methods are called on the event loop."""

    def models(self) -> tuple[ModelState, ...]:
        """All models, in the order in which they were given."""

    def model(self, name: str) -> ModelState:
        """One of them; "" is the first.

        Raises:
            Refusal: "not_found".
        """

    def defaults(self, model: str) -> Sampling:
        """What the model's checkpoint recommends where a request says nothing.

        Raises:
            Refusal: "not_found".
        """

    def generate(self, model: str, request: TextRequest, caller: Caller) -> AsyncGenerator[TextEvent, None]:
        """Pieces of the answer as they come; the first is empty and says that the engine took the request, the last has
        `finished` and `usage`.

        Closing the generator early (`aclose`, or its task is cancelled) ends the work within one step of the engine.
        The id of `request` is the protocol's and need not differ from others'. Messages may carry what the chat template
        knows beyond role and content. Nothing is yielded before the request was admitted, so that a refusal is raised first.

        Raises:
            Refusal: see `refusals.Reason`.
        """

    async def embed(self, model: str, texts: Sequence[str | tuple[int, ...]], caller: Caller) -> Vectors:
        """One vector for each text, or for each text in ids of the model's own tokenizer.

        Raises:
            Refusal: see `refusals.Reason`.
        """

    @property
    def accepting(self) -> bool:
        """False once a graceful stop has begun."""

    @property
    def ready(self) -> bool:
        """Whether a request for the first model would be answered now or after loading it."""
