"""One text engine on a thread of its own, asked from the event loop. Knows no protocol, no line and no other model.

    event loop ──submit, cancel──▶ inbox ──▶ engine's thread: submit, cancel, step, step, …
               ◀──one call a step, with all that came of it──

Prompts are put into tokens, and grammars compiled, on a second thread: neither the loop nor the answers under way wait for
them. Between steps the engine's thread looks into its inbox, so that a cancelled answer ends before the next step.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue

from aiasst.engine.engine import EngineStats
from aiasst.engine.text import PreparedRequest, TextEngine, TextEvent, TextRequest
from aiasst.errors import AiasstError, PromptError
from aiasst.serve.refusals import Refusal

STATS_SECONDS = 0.5
"""Between two looks at what the engine has done, while it is busy."""
_PROBE_CHARACTERS = 8
"""Characters for each token of the context by which a prompt is judged before all of it is put into tokens."""
_PROBE_MARGIN = 16
"""Tokens by which a text that is cut somewhere may have more than the whole one has there."""


@dataclass(frozen=True)
class _Submit:
    prepared: PreparedRequest


@dataclass(frozen=True)
class _Cancel:
    request_id: str


@dataclass(frozen=True)
class _Stop:
    pass


_Command = _Submit | _Cancel | _Stop


@dataclass(frozen=True)
class _Told:
    """What one turn of the engine's thread has for the loop."""

    events: list[TextEvent]
    refused: list[tuple[str, AiasstError]]
    stats: EngineStats | None = None


class _Stream:
    """Events of one request, until they are taken."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self._events: deque[TextEvent] = deque()
        self._error: Refusal | None = None
        self._news: asyncio.Future[None] | None = None

    def put(self, event: TextEvent) -> None:
        self._events.append(event)
        self._wake()

    def fail(self, error: Refusal) -> None:
        self._error = error
        self._wake()

    async def next(self) -> TextEvent:
        """The next event. Raises Refusal where the request failed, once what came before was taken."""
        while not self._events:
            if self._error is not None:
                raise self._error
            self._news = asyncio.get_running_loop().create_future()
            await self._news
        return self._events.popleft()

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)


class TextWorker:
    """A `TextEngine` with its thread; made, asked and closed on one event loop."""

    def __init__(self, engine: TextEngine, name: str, *, on_failed: Callable[[BaseException], None]) -> None:
        """`on_failed` is told, on the loop, when a step has failed: the worker is of no use then, and its requests are ended."""
        self._engine = engine
        self._name = name
        self._on_failed = on_failed
        self._loop = asyncio.get_running_loop()
        self._inbox: SimpleQueue[_Command] = SimpleQueue()
        self._streams: dict[str, _Stream] = {}
        self._ids = itertools.count()
        self._ended: Refusal | None = None
        self.stats = engine.engine.stats
        """What the engine has done, as of half a second ago at most."""
        self.context_length = engine.context_length
        template = engine.tokenizer.template
        self._variables: frozenset[str] = frozenset() if template is None else template.variables
        self._preparing = ThreadPoolExecutor(1, thread_name_prefix=f"prompts of {name}")
        self._gone = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"engine of {name}")
        self._thread.submit(self._run).add_done_callback(self._call_over)

    async def generate(self, request: TextRequest) -> AsyncGenerator[TextEvent, None]:
        """Events of one request; the first one is empty and says that the engine has taken it.

        Closing the generator early ends the work before the next step.

        Raises:
            Refusal: "invalid", "too_long", or "model_unavailable" where the engine failed or was closed.
        """
        own = replace(request, id=str(next(self._ids)))
        prepared = await self._loop.run_in_executor(self._preparing, self._prepare, own)
        if self._ended is not None:
            raise self._ended
        stream = self._streams[own.id] = _Stream(own.id)
        self._inbox.put(_Submit(prepared))
        finished = False
        try:
            while not finished:
                event = await stream.next()
                finished = event.finished is not None
                yield replace(event, request_id=request.id)
        finally:
            self._streams.pop(own.id, None)
            if not finished:
                self._inbox.put(_Cancel(own.id))

    def end(self, refusal: Refusal) -> None:
        """End all requests under way, and refuse those that come, with `refusal`."""
        self._ended = refusal
        for stream in list(self._streams.values()):
            stream.fail(refusal)

    def halt(self) -> None:
        """End what is under way, and the engine's thread after its step."""
        if self._ended is None:
            self.end(unavailable(f"the model {self._name} was unloaded", "ask again"))
        self._inbox.put(_Stop())

    async def close(self) -> None:
        """Halt, and wait for the thread's end."""
        self.halt()
        await self._gone.wait()

    def _prepare(self, request: TextRequest) -> PreparedRequest:
        """On the second thread."""
        self._refuse_what_is_much_too_long(request)
        if unknown := sorted(request.template.keys() - self._variables):
            raise Refusal(
                "unsupported",
                f"the chat template of {self._name} knows no {unknown[0]}",
                "leave it out, or ask a model that was trained with it",
                parameter=unknown[0],
            )
        try:
            prepared = self._engine.prepare(request)
        except PromptError as error:
            raise Refusal("invalid", error.message, error.hint) from error
        except AiasstError as error:  # the template of the folder is broken, say
            raise Refusal("unsupported", error.message, error.hint) from error
        if len(prepared.ids) >= self.context_length:
            raise self._too_long(f"{len(prepared.ids)} tokens")
        return prepared

    def _refuse_what_is_much_too_long(self, request: TextRequest) -> None:
        """By the beginning of the longest text: megabytes take many seconds to put into tokens, for others too."""
        texts = [message.content for message in request.messages or ()]
        if isinstance(request.prompt, str):
            texts.append(request.prompt)
        longest = max(texts, key=len, default="")
        beginning = longest[: _PROBE_CHARACTERS * self.context_length]
        if len(beginning) == len(longest):
            return
        tokens = len(self._engine.tokenizer.encode(beginning)) - _PROBE_MARGIN
        if tokens >= self.context_length:
            raise self._too_long(f"more than {tokens} tokens")

    def _too_long(self, length: str) -> Refusal:
        return Refusal(
            "too_long",
            f"the prompt has {length}; this model has room for {self.context_length}, at least one of them for the answer",
            "shorten the prompt, or the conversation",
        )

    def _run(self) -> None:
        """The engine's thread."""
        told_stats = time.monotonic()
        while True:
            came = _Told([], [])
            for command in self._commands():
                if isinstance(command, _Stop):
                    return
                if isinstance(command, _Cancel):
                    self._engine.cancel(command.request_id)
                else:
                    self._submit(command.prepared, came)
            if came.events or came.refused:
                self._tell(came)
            events = self._engine.step() if self._engine.busy else []
            now, stats = time.monotonic(), None
            if now - told_stats > STATS_SECONDS or not self._engine.busy:
                told_stats, stats = now, self._engine.engine.stats
            if events or stats is not None:
                self._tell(_Told(events, [], stats))

    def _commands(self) -> list[_Command]:
        """All that is in the inbox; waits for the first one where there is nothing to do."""
        commands: list[_Command] = [] if self._engine.busy else [self._inbox.get()]
        while True:
            try:
                commands.append(self._inbox.get_nowait())
            except Empty:
                return commands

    def _submit(self, prepared: PreparedRequest, came: _Told) -> None:
        request_id = prepared.request.id
        try:
            self._engine.submit(prepared)
        except PromptError as error:
            came.refused.append((request_id, error))
        else:
            came.events.append(TextEvent(request_id, "", None, None))

    def _tell(self, told: _Told) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._deliver, told)

    def _deliver(self, told: _Told) -> None:
        """On the loop."""
        if told.stats is not None:
            self.stats = told.stats
        for event in told.events:
            if (stream := self._streams.get(event.request_id)) is not None:
                stream.put(event)
        for request_id, error in told.refused:
            if (stream := self._streams.get(request_id)) is not None:
                stream.fail(Refusal("invalid", error.message, error.hint))

    def _call_over(self, run: Future[None]) -> None:
        """On the engine's thread, as its last."""
        with suppress(RuntimeError):  # as above
            self._loop.call_soon_threadsafe(self._over, run.exception())

    def _over(self, failure: BaseException | None) -> None:
        self._gone.set()
        # Whatever is being put into tokens is of no use to anyone; the thread ends behind it.
        self._preparing.shutdown(wait=False)
        self._thread.shutdown(wait=False)
        if failure is not None:
            self.end(unavailable(f"the model {self._name} failed: {in_words(failure)}", "ask again in a while"))
            self._on_failed(failure)


def in_words(failure: BaseException) -> str:
    """What went wrong, for whoever asked: the words of our own errors, the kind alone of others (the log has them whole)."""
    return failure.message if isinstance(failure, AiasstError) else f"an internal error ({type(failure).__name__})"


def unavailable(message: str, hint: str) -> Refusal:
    """The model cannot be asked now; it may be later."""
    return Refusal("model_unavailable", message, hint, retry_after=1.0)
