"""Refusals → status codes, a call's metadata → who asks, a call → its line in the log. Knows no request."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from typing import Any, NoReturn, TypeVar
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError, Message

from aiasst.serve.refusals import GRPC_CODE, Refusal
from aiasst.serve.request_log import Line, logged
from aiasst.serve.service import Caller
from aiasst.serve.watch import Watch

Authorize = Callable[[str | None, str], Caller]
"""(metadata "authorization", address of the peer) → who asks; raises a Refusal."""
_Request = TypeVar("_Request", bound=Message)
_Response = TypeVar("_Response")


class FaultError(Exception):
    """A mistake of ours, in the words that a client may read."""


def answering(
    call: Callable[[_Request, grpc.aio.ServicerContext], Coroutine[Any, Any, _Response]],
    read: type[_Request],
    path: str,
    watch: Watch | None,
) -> Callable[[bytes, grpc.aio.ServicerContext], Coroutine[Any, Any, _Response]]:
    """The call, taking bytes of a message of the type `read`; it ends with the status of any Refusal that it raises.

    Args:
        call: which may raise a Refusal.
        read: what it is given.
        path: of the call, as gRPC names it.
        watch: told of refusals; None: the call is no line in the log either.
    """

    async def answered(data: bytes, context: grpc.aio.ServicerContext) -> _Response:
        with logged("GRPC", path) if watch is not None else nullcontext(Line("GRPC", path)) as line:
            try:
                response = await call(_read(data, read), context)
                line.status = "OK"
                return response
            except Refusal as refusal:
                line.status = GRPC_CODE[refusal.reason]
                # Where it comes from the service, the service has told of it.
                if watch is not None and line.refused is None:
                    watch.refused("", "", refusal.reason)
                line.refused, told = refusal.reason, refusal
            except (asyncio.CancelledError, grpc.aio.InternalError):
                # The second is a write that failed: the client has gone, and gRPC has not cancelled us yet.
                line.status = "CANCELLED"
                raise asyncio.CancelledError from None
            except Exception as error:
                # Left to gRPC, which logs both, the client would read what is wrong in here.
                line.status = "INTERNAL"
                context.set_code(grpc.StatusCode.INTERNAL)
                raise FaultError("an internal error; the log has more") from error
        return await abort(context, told)

    return answered


def _read(data: bytes, kind: type[_Request]) -> _Request:
    try:
        message: _Request = kind.FromString(data)
    except DecodeError:
        # Left to gRPC, it would be a fault of ours, with a traceback in the log.
        name = kind.DESCRIPTOR.full_name
        raise Refusal("invalid", f"the bytes are no message {name}", "write them with the service's .proto") from None
    return message


async def abort(context: grpc.aio.ServicerContext, refusal: Refusal) -> NoReturn:
    """End the call with the status of `refusal`."""
    metadata = [("aiasst-reason", str(refusal.reason))]
    if refusal.parameter is not None:
        metadata.append(("aiasst-param", refusal.parameter))
    if refusal.retry_after is not None:
        metadata.append(("retry-after", str(max(1, math.ceil(refusal.retry_after)))))
    words = f"{refusal.message}; {refusal.hint}" if refusal.hint else refusal.message
    await context.abort(grpc.StatusCode[GRPC_CODE[refusal.reason]], words, tuple(metadata))
    raise AssertionError("abort returned")


def caller_of(context: grpc.aio.ServicerContext, authorize: Authorize) -> Caller:
    """Who makes this call. Raises Refusal."""
    given = (value for key, value in context.invocation_metadata() or () if key == "authorization")
    return authorize(next(given, None), address_of(context.peer()))


def address_of(peer: str) -> str:
    """The address in gRPC's name of a peer, "ipv4:127.0.0.1:50000" or "ipv6:%5B::1%5D:50000"; "" for others."""
    family, _, rest = unquote(peer).partition(":")
    return rest.rpartition(":")[0].strip("[]") if family in ("ipv4", "ipv6") else ""
