"""The calls of the interface: asked of the service, with the deadline and the cancellation of the client. Knows no engine.

gRPC cancels the task of a call whose client has cancelled or gone, or whose deadline is over; that ends its work, since the
service's generators are closed with it. A piece is written when the client has room for it.
"""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass, replace

import grpc

from aiasst.serve.forms import Asked, answer, asked, pieces
from aiasst.serve.refusals import Refusal
from aiasst.serve.rpc import aiasst_pb2 as pb
from aiasst.serve.rpc.messages import asks_of, embedded_of, model_of, piece_of, response_of
from aiasst.serve.rpc.statuses import Authorize, caller_of
from aiasst.serve.service import Caller, Service


@dataclass(frozen=True)
class _Call:
    """A call that was understood."""

    asked: Asked
    caller: Caller
    bound: bool
    """Whether the call's own deadline is the first to come."""


class Assistant:
    """The calls of `aiasst.v1.Assistant`, by their names; each may raise a Refusal."""

    def __init__(self, service: Service, authorize: Authorize) -> None:
        self._service = service
        self._authorize = authorize

    async def Generate(self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext) -> pb.GenerateResponse:
        """Continue a prompt, or answer a chat."""
        return await self._answer(request, context)

    async def GenerateStream(self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext) -> None:
        """The same in pieces."""
        await self._pieces(request, context)

    async def Query(self, request: pb.QueryRequest, context: grpc.aio.ServicerContext) -> pb.GenerateResponse:
        """Answer a query over passages of context."""
        return await self._answer(request, context)

    async def QueryStream(self, request: pb.QueryRequest, context: grpc.aio.ServicerContext) -> None:
        """The same in pieces."""
        await self._pieces(request, context)

    async def Embed(self, request: pb.EmbedRequest, context: grpc.aio.ServicerContext) -> pb.EmbedResponse:
        """Texts to vectors."""
        caller = caller_of(context, self._authorize)
        model = self._service.model(request.model).name
        if not request.texts:
            raise Refusal("invalid", "there is no text", "give at least one", parameter="texts")
        return embedded_of(model, await self._service.embed(model, list(request.texts), caller))

    async def ListModels(
        self, request: pb.ListModelsRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListModelsResponse:
        """All models and how they are."""
        caller_of(context, self._authorize)
        return pb.ListModelsResponse(models=map(model_of, self._service.models()))

    async def _answer(
        self, request: pb.GenerateRequest | pb.QueryRequest, context: grpc.aio.ServicerContext
    ) -> pb.GenerateResponse:
        call = self._understood(request, context)
        made = await answer(self._service, call.asked, call.caller)
        _keep_deadline(call, made.finished == "deadline")
        return response_of(call.asked, made)

    async def _pieces(self, request: pb.GenerateRequest | pb.QueryRequest, context: grpc.aio.ServicerContext) -> None:
        call = self._understood(request, context)
        async with aclosing(pieces(self._service, call.asked, call.caller)) as events:
            async for event in events:
                await context.write(piece_of(call.asked, event))
                _keep_deadline(call, event.finished == "deadline")

    def _understood(self, request: pb.GenerateRequest | pb.QueryRequest, context: grpc.aio.ServicerContext) -> _Call:
        """Who asks what. Raises Refusal."""
        caller = caller_of(context, self._authorize)
        wanted = asked(self._service, asks_of(request), "call")
        left, own = context.time_remaining(), wanted.request.deadline_seconds
        if left is None or (own is not None and own < left):
            return _Call(wanted, caller, bound=False)
        if left <= 0:
            raise _over()
        return _Call(replace(wanted, request=replace(wanted.request, deadline_seconds=left)), caller, bound=True)


def _keep_deadline(call: _Call, over: bool) -> None:
    """An answer that the call's own deadline cut short has a status of its own."""
    if over and call.bound:
        raise _over()


def _over() -> Refusal:
    return Refusal("deadline", "the deadline of the call is over", "allow it more time, or ask for fewer tokens")
