"""Messages of `aiasst.proto` ↔ the service's own forms. Knows no call and no server."""

from __future__ import annotations

import json
from typing import Any

from aiasst.engine.requests import Finished
from aiasst.engine.text import TextEvent, TokenReport, TokenText, Usage
from aiasst.serve.forms import Asked, AskFields, ended
from aiasst.serve.refusals import Refusal
from aiasst.serve.rest.answering import Whole
from aiasst.serve.rpc import aiasst_pb2 as pb
from aiasst.serve.service import ModelState, Vectors

_FINISHED: dict[Finished, pb.FinishReason] = {
    "stop": pb.FINISH_REASON_STOP,
    "length": pb.FINISH_REASON_LENGTH,
    "cancelled": pb.FINISH_REASON_CANCELLED,
    "deadline": pb.FINISH_REASON_DEADLINE,
}


def asks_of(request: pb.GenerateRequest | pb.QueryRequest) -> AskFields:
    """The form of a request.

    Raises:
        Refusal: "invalid".
    """
    data: dict[str, Any] = {"model": request.model, "params": _params(request.params)}
    if isinstance(request, pb.QueryRequest):
        data |= {"query": request.query, "context": list(request.context)}
    elif request.WhichOneof("input") == "chat":
        data["messages"] = [{"role": turn.role, "content": turn.content} for turn in request.chat.messages]
    elif request.WhichOneof("input") == "prompt":
        data["prompt"] = request.prompt
    return AskFields.checked(data, "the request")


def response_of(asked: Asked, answer: Whole) -> pb.GenerateResponse:
    """A complete answer."""
    finished, usage = ended(answer)
    return pb.GenerateResponse(
        text=answer.text,
        model=asked.model,
        finish_reason=_FINISHED[finished],
        usage=_usage(usage),
        logprobs=map(_report, answer.tokens),
    )


def piece_of(asked: Asked, event: TextEvent) -> pb.GeneratePiece:
    """A piece of one."""
    piece = pb.GeneratePiece(text=event.text, logprobs=map(_report, event.tokens))
    if event.finished is not None and event.usage is not None:
        piece.model = asked.model
        piece.finish_reason = _FINISHED[event.finished]
        piece.usage.CopyFrom(_usage(event.usage))
    return piece


def embedded_of(model: str, vectors: Vectors) -> pb.EmbedResponse:
    """Vectors of texts."""
    return pb.EmbedResponse(
        model=model,
        vectors=[pb.Vector(values=row.tolist()) for row in vectors.values],
        prompt_tokens=vectors.tokens,
    )


def model_of(state: ModelState) -> pb.Model:
    """A model and how it is."""
    return pb.Model(
        name=state.name,
        kind=state.kind,
        task=state.task,
        state=state.state,
        problem=state.problem,
        created=state.created,
        weight_bytes=state.weight_bytes,
        context_length=state.context_length,
        has_chat_template=state.has_chat_template,
    )


def _params(params: pb.Params) -> dict[str, Any]:
    """What is set, by the names of the form."""
    given: dict[str, Any] = {field.name: value for field, value in params.ListFields()}
    if "stop" in given:
        given["stop"] = list(params.stop)
    if "logit_bias" in given:
        given["logit_bias"] = dict(params.logit_bias)
    if "json_schema" in given:
        given["json_schema"] = _schema(params.json_schema)
    return given


def _schema(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Refusal("invalid", "params.json_schema is not valid JSON", "write the schema as JSON") from None


def _usage(usage: Usage) -> pb.Usage:
    return pb.Usage(
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        completion_tokens=usage.completion_tokens,
    )


def _report(report: TokenReport) -> pb.TokenReport:
    return pb.TokenReport(chosen=_token(report.chosen), top=map(_token, report.likeliest))


def _token(token: TokenText) -> pb.Token:
    return pb.Token(id=token.id, text=token.text, logprob=token.logprob)
