"""Several answers at once as one stream, and what they took. Knows no document of any protocol."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from aiasst.engine.requests import Finished
from aiasst.engine.text import TextEvent, TextRequest, TokenReport, Usage
from aiasst.serve.refusals import Refusal
from aiasst.serve.service import Caller, Service

Numbered = tuple[int, TextEvent]


@dataclass
class Whole:
    """An answer that is complete, or on its way to it."""

    text: str = ""
    tokens: list[TokenReport] = field(default_factory=list)
    finished: Finished | None = None
    usage: Usage | None = None

    def add(self, event: TextEvent) -> None:
        """Take in the next piece."""
        self.text += event.text
        self.tokens += event.tokens
        if event.finished is not None:
            self.finished, self.usage = event.finished, event.usage


async def answers(
    service: Service, model: str, requests: Sequence[TextRequest], caller: Caller
) -> AsyncGenerator[Numbered, None]:
    """Pieces of the answers to all `requests` as they come, each with the number of its request.

    Raises:
        Refusal: of any of them; the others are ended.
    """
    streams = [service.generate(model, request, caller) for request in requests]
    if len(streams) == 1:
        async with aclosing(streams[0]) as events:
            async for event in events:
                yield 0, event
        return
    # One of many is refused before the others begin, or not at all: they are asked in turn.
    queue: asyncio.Queue[Numbered | Refusal | None] = asyncio.Queue()
    tasks = [asyncio.create_task(_pump(number, stream, queue)) for number, stream in enumerate(streams)]
    try:
        left = len(tasks)
        while left:
            item = await queue.get()
            if isinstance(item, Refusal):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
        for task in tasks:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def whole_answers(service: Service, model: str, requests: Sequence[TextRequest], caller: Caller) -> list[Whole]:
    """All answers, complete.

    Raises:
        Refusal: as `answers`; or "deadline", where time was up before an answer had a single token.
    """
    made = [Whole() for _ in requests]
    async with aclosing(answers(service, model, requests, caller)) as pieces:
        async for number, event in pieces:
            made[number].add(event)
    for answer in made:
        refuse_nothing(answer.finished, answer.usage)
    return made


def refuse_nothing(finished: Finished | None, usage: Usage | None) -> None:
    """Raise Refusal ("deadline") for an answer whose time was up before its first token."""
    if finished == "deadline" and (usage is None or usage.completion_tokens == 0):
        raise Refusal("deadline", "the deadline was over before the answer began", "allow it more time")


def used(answers: Sequence[Usage | None], prompts: int) -> Usage:
    """What all answers to `prompts` prompts took; a prompt counts once, however many answers it has."""
    known = [usage for usage in answers if usage is not None]
    each = max(1, len(answers) // prompts)
    first = [usage for usage in answers[::each] if usage is not None]
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in first),
        cached_tokens=sum(usage.cached_tokens for usage in first),
        completion_tokens=sum(usage.completion_tokens for usage in known),
        drafted_tokens=sum(usage.drafted_tokens for usage in known),
        accepted_tokens=sum(usage.accepted_tokens for usage in known),
    )


async def _pump(
    number: int, stream: AsyncGenerator[TextEvent, None], queue: asyncio.Queue[Numbered | Refusal | None]
) -> None:
    try:
        async with aclosing(stream) as events:
            async for event in events:
                queue.put_nowait((number, event))
    except Refusal as refusal:
        queue.put_nowait(refusal)
    finally:
        queue.put_nowait(None)
