"""A service without a model: what it answers is known, and what was asked of it is written down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

import numpy as np

from aiasst.engine.requests import Sampling
from aiasst.engine.text import TextEvent, TextRequest, TokenReport, TokenText, Usage
from aiasst.serve.refusals import Refusal
from aiasst.serve.service import Caller, ModelState, Vectors

NAMES = ("story", "chat", "minilm")


def state(name: str) -> ModelState:
    return ModelState(
        name=name,
        kind="encoder" if name == "minilm" else "text-generation",
        task="feature-extraction" if name == "minilm" else "text-generation",
        state="ready",
        problem="",
        created=1_700_000_000,
        weight_bytes=1000,
        context_length=64,
        has_chat_template=name == "chat",
        running=0,
        waiting=0,
        stats=None,
    )


def read_text(request: TextRequest) -> str:
    """What the model reads."""
    if request.messages is None:
        return request.prompt or ""
    return "\n".join(f"<{message.role}>{message.content}" for message in request.messages)


@dataclass
class FakeService:
    """Answers the words of what it reads, backwards, one a piece. "wait" in it: one word, then nothing; "endless": without end."""

    refuse: Refusal | None = None
    refuse_after: int = 0
    """Pieces before `refuse` is raised."""
    accepting: bool = True
    ready: bool = True
    asked: list[tuple[str, TextRequest, Caller]] = field(default_factory=list)
    under_way: int = 0
    yielded: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set whenever a request ends, however it does."""

    def models(self) -> tuple[ModelState, ...]:
        return tuple(map(state, NAMES))

    def model(self, name: str) -> ModelState:
        if name not in ("", *NAMES):
            raise Refusal("not_found", f"there is no model {name!r}", "ask for one of " + ", ".join(NAMES))
        return state(name or NAMES[0])

    def defaults(self, model: str) -> Sampling:
        return Sampling(max_tokens=50, temperature=0.7)

    async def generate(self, model: str, request: TextRequest, caller: Caller) -> AsyncGenerator[TextEvent, None]:
        self.asked.append((model, request, caller))
        self.under_way += 1
        try:
            async for event in self._answer(request):
                self.yielded += 1
                yield event
        finally:
            self.under_way -= 1
            self.ended.set()

    async def _answer(self, request: TextRequest) -> AsyncGenerator[TextEvent, None]:
        read = read_text(request)
        words = read.split()[::-1][: request.sampling.max_tokens]
        if self.refuse is not None and self.refuse_after == 0:
            raise self.refuse
        yield TextEvent(request.id, "", None, None)
        if "wait" in words:
            seconds = request.deadline_seconds
            yield TextEvent(request.id, "well", None, None)
            await asyncio.sleep(3600 if seconds is None else seconds)
            yield TextEvent(request.id, "", "deadline", Usage(len(read.split()), 0, 1))
            return
        while "endless" in words:
            await asyncio.sleep(0)
            yield TextEvent(request.id, "on and on " * 1000, None, None)
        for number, word in enumerate(words, start=1):
            await asyncio.sleep(0)
            if self.refuse is not None and number > self.refuse_after:
                raise self.refuse
            told = () if request.sampling.logprobs is None else (_report(number, word),)
            yield TextEvent(request.id, word + " ", None, None, told)
        finished = "length" if len(words) == request.sampling.max_tokens else "stop"
        yield TextEvent(request.id, "", finished, Usage(len(read.split()), 1, len(words)))

    async def embed(self, model: str, texts: Sequence[str], caller: Caller) -> Vectors:
        if state(model).kind != "encoder":
            raise Refusal("unsupported", f"{model} writes texts and gives no vectors", "ask an encoder")
        values = np.array([[len(text), 0.5, -1.0] for text in texts], np.float32)
        return Vectors(values, sum(len(text.split()) for text in texts))


def _report(number: int, word: str) -> TokenReport:
    return TokenReport(TokenText(number, word, -0.5), (TokenText(number, word, -0.5), TokenText(0, "?", -1.5)))
