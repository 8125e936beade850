"""WebSocket /v1/stream: requests in as JSON messages, tokens out as they come, several at once. Knows no engine.

in   {"id": 1, "messages": [...]} or "prompt" or "query" with "context"; beside it "params" and "model", see `forms.py`
     {"cancel": 1}                 ends that answer; nothing happens where it has ended
out  {"id": 1, "text": "Once"}     a piece; the last has "finish_reason", "model" and "usage" too (no usage where it was cancelled)
     {"id": 1, "error": {...}}     a refusal; "id" is null where the message was not readable enough to have one

The socket stays open over refusals. It is closed (RFC 6455, 7.4.1) with 1003 for a binary message, 1007 for text that is not
UTF-8 (by the server below), 1008 for a client that sends nothing but nonsense or does not read, 1009 for a message that is too
large, 1011 for a fault in here. An answer goes on only as fast as its client reads, and ends with the socket.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from fastapi import APIRouter, WebSocket
from starlette.websockets import WebSocketDisconnect, WebSocketDisconnected

from aiasst.engine.fields import json_object
from aiasst.errors import PromptError
from aiasst.serve.forms import Asked, AskFields, PieceFields, asked, pieces
from aiasst.serve.refusals import Refusal
from aiasst.serve.rest.common import caller_of
from aiasst.serve.rest.errors import body_of
from aiasst.serve.service import Caller, Service
from aiasst.serve.settings import Limits
from aiasst.serve.watch import Unwatched, Watch

MOST_AT_ONCE = 32
"""Requests of one socket under way at once."""
MOST_WRONG = 16
"""Messages in a row that are no requests, before the socket is closed."""
UNREAD_SECONDS = 30.0
"""A client that reads nothing for so long, while there is something to read, is gone."""
_LONGEST_ID = 256
"""Characters: every piece of the answer repeats it."""
_CLOSING_SECONDS = 1.0

_UNSUPPORTED, _VIOLATION, _TOO_LARGE, _FAULT = 1003, 1008, 1009, 1011
_HINT = (
    'a message is {"id": 1, "messages": [...]}, {"id": 1, "query": "..."}, {"id": 1, "prompt": "..."} or {"cancel": 1}'
)

RequestId = str | int


class Gate(Protocol):
    """What counts requests; the guard puts it into the state of the connection."""

    def admit(self, caller: Caller, address: str) -> object:
        """Count one request. Raises Refusal."""


def router(
    service: Service,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    watch: Watch = Unwatched(),  # noqa: B008 - has no state
) -> APIRouter:
    """The route /v1/stream; `watch` is told of refusals that do not reach the service."""
    routes = APIRouter()

    @routes.websocket("/v1/stream")
    async def stream(websocket: WebSocket) -> None:
        await _Socket(websocket, service, limits, watch).run()

    return routes


class _EndingError(Exception):
    """The socket is at its end."""

    def __init__(self, code: int | None, reason: str = "") -> None:
        """`code`: to close it with; None: it is closed already."""
        super().__init__(reason)
        self.code = code
        self.reason = reason


@dataclass
class _Running:
    """A request under way."""

    task: asyncio.Task[None] | None = None
    begun: bool = False
    """Whether its task has run at all: one that has not is never told that it was cancelled."""
    cancelled: bool = False
    """By the client."""


class _Socket:
    """One socket: a reader, and a task for each request under way."""

    def __init__(self, websocket: WebSocket, service: Service, limits: Limits, watch: Watch) -> None:
        self._websocket = websocket
        self._service = service
        self._watch = watch
        self._most_bytes = limits.most_body_bytes
        self._requests: dict[RequestId, _Running] = {}
        self._wrong = 0
        self._asked = 0
        # One at a time: a client that does not read then stops every answer at its next piece.
        self._sending = asyncio.Lock()

    async def run(self) -> None:
        """Serve the socket to its end, and everything asked through it."""
        await self._websocket.accept()
        endings: list[_EndingError] = []
        try:
            async with asyncio.TaskGroup() as group:
                await self._read(group)
        except* _EndingError as ended:
            endings += [error for error in ended.exceptions if isinstance(error, _EndingError)]
        except* Exception:
            await self._close(_FAULT, "a fault in the service")
            raise
        if endings and endings[0].code is not None:
            await self._close(endings[0].code, endings[0].reason)

    async def _read(self, group: asyncio.TaskGroup) -> None:
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                raise _EndingError(None)
            text: str | None = message.get("text")
            if text is None:
                raise _EndingError(_UNSUPPORTED, "messages are text")
            data = text.encode("utf-8")
            if len(data) > self._most_bytes:
                raise _EndingError(_TOO_LARGE, f"a message has at most {self._most_bytes} bytes")
            await self._take(group, data)

    async def _take(self, group: asyncio.TaskGroup, data: bytes) -> None:
        """One message: begin what it asks for, or say why not."""
        request_id: RequestId | None = None
        try:
            message = json_object(data, "the message", _HINT)
            if "cancel" in message:
                self._cancel(message)
            else:
                # Not that of another: the error would be taken for the end of its answer.
                request_id = self._new_id(message)
                self._begin(group, request_id, {key: message[key] for key in message if key != "id"})
            self._wrong = 0
        except Refusal as refusal:
            await self._refuse(request_id, refusal)
        except PromptError as error:
            await self._refuse(request_id, Refusal("invalid", error.message, error.hint))

    def _new_id(self, message: dict[str, Any]) -> RequestId:
        if "id" not in message:
            raise PromptError("the message has no id", _HINT)
        request_id = _checked_id(message["id"])
        if request_id in self._requests:
            raise PromptError(f"the request {request_id!r} is under way", "give every request its own id")
        return request_id

    async def _refuse(self, request_id: RequestId | None, refusal: Refusal) -> None:
        await self._say({"id": request_id, "error": _error(refusal)})
        self._watch.refused("", caller_of(self._websocket).name, refusal.reason)
        self._wrong += refusal.reason == "invalid"
        if self._wrong >= MOST_WRONG:
            raise _EndingError(_VIOLATION, "nothing but messages that are no requests")

    def _begin(self, group: asyncio.TaskGroup, request_id: RequestId, message: dict[str, Any]) -> None:
        if len(self._requests) >= MOST_AT_ONCE:
            raise Refusal(
                "queue_full",
                f"this socket has {MOST_AT_ONCE} requests under way",
                "wait for one of them",
                retry_after=1.0,
            )
        caller = self._admitted()
        wanted = asked(self._service, AskFields.checked(message, "the message"), str(request_id))
        running = self._requests[request_id] = _Running()
        running.task = group.create_task(self._answer(request_id, running, wanted, caller))

    def _admitted(self) -> Caller:
        """Who asks. A key may have come with the first message, so it is asked now; the first request counted as the connection."""
        caller = caller_of(self._websocket)
        gate: Gate | None = self._websocket.scope.get("state", {}).get("gate")
        self._asked += 1
        if gate is not None and self._asked > 1:
            gate.admit(caller, "" if self._websocket.client is None else self._websocket.client.host)
        return caller

    def _cancel(self, message: dict[str, Any]) -> None:
        if len(message) > 1:
            raise PromptError("a message that cancels says nothing else", _HINT)
        request_id = _checked_id(message["cancel"])
        running = self._requests.get(request_id)
        if running is None or running.cancelled:
            return
        running.cancelled = True
        if running.begun and running.task is not None:
            running.task.cancel()

    async def _answer(self, request_id: RequestId, running: _Running, wanted: Asked, caller: Caller) -> None:
        running.begun = True
        last: dict[str, Any] = {"text": "", "model": wanted.model, "finish_reason": "cancelled"}
        try:
            if not running.cancelled:
                last = await self._pieces(request_id, wanted, caller)
        except Refusal as refusal:
            last = {"error": _error(refusal)}
        except asyncio.CancelledError:
            task = asyncio.current_task()
            # More than once: the socket ends as well.
            if not running.cancelled or task is None or task.cancelling() > 1:
                raise
            task.uncancel()
        finally:
            # Before the last piece is sent: then the client may use the id again.
            del self._requests[request_id]
        await self._say({"id": request_id} | last)

    async def _pieces(self, request_id: RequestId, wanted: Asked, caller: Caller) -> dict[str, Any]:
        """Send all pieces but the last, which is given."""
        async with aclosing(pieces(self._service, wanted, caller)) as events:
            async for event in events:
                told = PieceFields.of(wanted, event).model_dump(mode="json", exclude_none=True)
                if event.finished is not None:
                    return told
                await self._say({"id": request_id} | told)
        raise RuntimeError("an answer without an end")

    async def _say(self, message: dict[str, Any]) -> None:
        """Send a message as soon as the client has read enough of those before."""
        text = json.dumps(message, ensure_ascii=False)
        async with self._sending:
            try:
                async with asyncio.timeout(UNREAD_SECONDS):
                    await self._websocket.send_text(text)
            except (WebSocketDisconnect, WebSocketDisconnected):
                raise _EndingError(None) from None
            except TimeoutError:
                raise _EndingError(_VIOLATION, "nothing was read") from None

    async def _close(self, code: int, reason: str) -> None:
        """Say farewell, unless the client does not read even that."""
        with suppress(WebSocketDisconnect, WebSocketDisconnected, TimeoutError):
            async with asyncio.timeout(_CLOSING_SECONDS):
                await self._websocket.close(code, reason)


def _error(refusal: Refusal) -> dict[str, Any]:
    """As in REST, and when to ask again, for which REST has a header."""
    error: dict[str, Any] = body_of(refusal)["error"]
    return error if refusal.retry_after is None else {**error, "retry_after": refusal.retry_after}


def _checked_id(value: object) -> RequestId:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise PromptError("an id is a text or a whole number", _HINT)
    if len(str(value)) > _LONGEST_ID:
        raise PromptError(f"an id has at most {_LONGEST_ID} characters", "number the requests")
    return value
