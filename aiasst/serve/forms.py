"""The service's own forms of a request (a query over context, a chat, a prompt) and of its answer. Knows no protocol.

    {"query": "…", "context": ["…", …], "params": {…}, "model": "…"}       see `context.py` for what the model reads
    {"messages": [{"role": "…", "content": "…"}, …], "params": {…}, …}
    {"prompt": "…", "params": {…}, …}

`params` are the keys of a row that `aiasst run` reads (temperature, top_k, max_tokens, stop, json_schema, …), `priority` and
`deadline_seconds`; what they do not say is as the checkpoint recommends. Without `model` the first one answers.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import ConfigDict, Field

from aiasst.artifacts.document import Document
from aiasst.engine.fields import MessageFields, ParameterFields, TokenReportFields, UsageFields
from aiasst.engine.requests import Finished
from aiasst.engine.text import TextEvent, TextRequest, Usage
from aiasst.errors import ArtifactError, PromptError
from aiasst.serve.context import as_messages, as_prompt
from aiasst.serve.refusals import Refusal
from aiasst.serve.rest.answering import Whole, refuse_nothing, whole_answers
from aiasst.serve.service import Caller, Service
from aiasst.tokenizer import Message

_HINT = 'a request is {"query": "...", "context": ["..."]}, {"messages": [...]} or {"prompt": "..."}, with "params" beside it'


class ParamsFields(ParameterFields):
    """How the answer is to be made."""

    priority: int = 0
    """From -10 to 10, higher first."""
    deadline_seconds: float | None = None
    """Seconds after which the answer ends wherever it is."""


class AskFields(Document):
    """A query, a chat or a prompt: exactly one of the three."""

    model_config = ConfigDict(strict=True)

    query: str | None = None
    context: Annotated[tuple[str, ...], Field(strict=False)] = ()
    messages: Annotated[tuple[MessageFields, ...] | None, Field(strict=False)] = None
    prompt: str | None = None
    params: ParamsFields = ParamsFields()
    model: str = ""

    @classmethod
    def checked(cls, data: object, what: str) -> Self:
        """The fields in `data`; `what` names them in the error.

        Raises:
            Refusal: "invalid".
        """
        try:
            return cls.parse(data, what)
        except ArtifactError as error:
            raise Refusal("invalid", error.message, _HINT) from None


@dataclass(frozen=True)
class Asked:
    """A request, and the model it is for."""

    model: str
    request: TextRequest


class AnswerFields(Document):
    """An answer in JSON."""

    answer: str
    model: str
    finish_reason: Finished
    usage: UsageFields
    logprobs: tuple[TokenReportFields, ...] | None = None
    """Where they were asked for: one entry a token."""

    @classmethod
    def of(cls, asked: Asked, answer: Whole) -> Self:
        """What is told of a complete `answer`."""
        wanted = asked.request.sampling.logprobs is not None
        finished, usage = ended(answer)
        return cls(
            answer=answer.text,
            model=asked.model,
            finish_reason=finished,
            usage=UsageFields.of(usage),
            logprobs=tuple(map(TokenReportFields.of, answer.tokens)) if wanted else None,
        )


class PieceFields(Document):
    """A piece of an answer in JSON; the last has all but the log probabilities, which every piece has where they were asked for."""

    text: str
    logprobs: tuple[TokenReportFields, ...] | None = None
    model: str | None = None
    finish_reason: Finished | None = None
    usage: UsageFields | None = None

    @classmethod
    def of(cls, asked: Asked, event: TextEvent) -> Self:
        """What is told of `event`."""
        return cls(
            text=event.text,
            logprobs=tuple(map(TokenReportFields.of, event.tokens)) or None,
            model=None if event.finished is None else asked.model,
            finish_reason=event.finished,
            usage=None if event.usage is None else UsageFields.of(event.usage),
        )


def asked(service: Service, fields: AskFields, request_id: str) -> Asked:
    """The request in `fields`, and the model it is for.

    Raises:
        Refusal: "not_found"; "invalid": not one of query, messages and prompt, or a parameter outside its range.
    """
    model = service.model(fields.model)
    try:
        prompt, messages = _reading(fields, has_template=model.has_chat_template)
        request = TextRequest(
            id=request_id,
            prompt=prompt,
            messages=messages,
            sampling=fields.params.sampling(service.defaults(model.name)),
            stop=fields.params.stops(),
            constraint=fields.params.constraint("a request"),
            priority=fields.params.priority,
            deadline_seconds=_deadline(fields.params.deadline_seconds),
        )
    except PromptError as error:
        raise Refusal("invalid", error.message, error.hint) from None
    return Asked(model.name, request)


async def answer(service: Service, asked: Asked, caller: Caller) -> Whole:
    """The complete answer; cancelling the task ends the work.

    Raises:
        Refusal: as `Service.generate`; "deadline" where time was up before the first token.
    """
    (made,) = await whole_answers(service, asked.model, [asked.request], caller)
    return made


async def pieces(service: Service, asked: Asked, caller: Caller) -> AsyncGenerator[TextEvent, None]:
    """The pieces that say something; closing the generator ends the work.

    Raises:
        Refusal: as `answer`.
    """
    async with aclosing(service.generate(asked.model, asked.request, caller)) as events:
        async for event in events:
            refuse_nothing(event.finished, event.usage)
            if says_something(event):
                yield event


def says_something(event: TextEvent) -> bool:
    """False for the first one, which says only that the engine took the request."""
    return bool(event.text or event.tokens) or event.finished is not None


def ended(answer: Whole) -> tuple[Finished, Usage]:
    """Why a complete answer ended, and what it took."""
    assert answer.finished is not None
    assert answer.usage is not None
    return answer.finished, answer.usage


def _reading(fields: AskFields, *, has_template: bool) -> tuple[str | None, tuple[Message, ...] | None]:
    """What the model reads: a prompt, or messages."""
    if sum(given is not None for given in (fields.query, fields.messages, fields.prompt)) != 1:
        raise PromptError("a request has one of 'query', 'messages' and 'prompt'", _HINT)
    if fields.query is None and fields.context:
        raise PromptError("'context' belongs to a 'query'", _HINT)
    if fields.messages is not None:
        return None, tuple(Message(message.role, message.content) for message in fields.messages)
    if fields.query is None:
        return fields.prompt, None
    if not fields.query.strip():
        raise PromptError("the query is empty", "write what is to be answered")
    if has_template:
        return None, as_messages(fields.query, fields.context)
    return as_prompt(fields.query, fields.context), None


def _deadline(seconds: float | None) -> float | None:
    """Checked here, since an engine would refuse it only when the request's turn comes."""
    if seconds is not None and not 0 < seconds < float("inf"):
        raise PromptError(f"deadline_seconds is {seconds}", "deadline_seconds must be above 0")
    return seconds
