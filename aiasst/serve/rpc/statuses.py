"""Refusals → status codes, and a call's metadata → who asks. Knows no request."""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, NoReturn, TypeVar
from urllib.parse import unquote

import grpc

from aiasst.serve.forms import in_words
from aiasst.serve.refusals import GRPC_CODE, Refusal
from aiasst.serve.service import Caller

Authorize = Callable[[str | None, str], Caller]
"""(metadata "authorization", address of the peer) → who asks; raises a Refusal."""


_S = TypeVar("_S")
_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_Handler = Callable[[_S, _Request, grpc.aio.ServicerContext], Coroutine[Any, Any, _Response]]


def refusing(call: _Handler[_S, _Request, _Response]) -> _Handler[_S, _Request, _Response]:
    """The call, ended with the status of whatever Refusal it raises."""

    @wraps(call)
    async def answered(self: _S, request: _Request, context: grpc.aio.ServicerContext) -> _Response:
        try:
            return await call(self, request, context)
        except Refusal as refusal:
            await abort(context, refusal)

    return answered


async def abort(context: grpc.aio.ServicerContext, refusal: Refusal) -> NoReturn:
    """End the call with the status of `refusal`."""
    metadata: list[tuple[str, str]] = [("aiasst-reason", refusal.reason)]
    if refusal.parameter is not None:
        metadata.append(("aiasst-param", refusal.parameter))
    if refusal.retry_after is not None:
        metadata.append(("retry-after", str(max(1, math.ceil(refusal.retry_after)))))
    await context.abort(grpc.StatusCode[GRPC_CODE[refusal.reason]], in_words(refusal), tuple(metadata))
    raise AssertionError("abort returned")


def caller_of(context: grpc.aio.ServicerContext, authorize: Authorize) -> Caller:
    """Who asks. Raises Refusal."""
    given = (value for key, value in context.invocation_metadata() or () if key == "authorization")
    return authorize(next(given, None), address_of(context.peer()))


def address_of(peer: str) -> str:
    """The address in gRPC's name of a peer, "ipv4:127.0.0.1:50000" or "ipv6:%5B::1%5D:50000"; "" for others."""
    family, _, rest = unquote(peer).partition(":")
    return rest.rpartition(":")[0].strip("[]") if family in ("ipv4", "ipv6") else ""
