"""One encoder on a thread of its own: texts of several requests run together, and none waits behind a long list. Knows no protocol.

Each turn takes some texts of every request in line, so that one text is answered after one turn, whatever others ask.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

import numpy as np
import numpy.typing as npt

from aiasst.engine.encode import Encoder, Prepared, TextInput
from aiasst.engine.heads import Vector
from aiasst.errors import PromptError
from aiasst.serve.models.worker import in_words, unavailable
from aiasst.serve.refusals import Refusal

TURN_TEXTS = 32
"""Of all requests together in one turn, at least one of each: some batches of the encoder's own budget of tokens."""

Texts = Sequence[str | tuple[int, ...]]


@dataclass
class _Job:
    """One request."""

    texts: Texts
    future: asyncio.Future[tuple[npt.NDArray[np.float32], int]]
    vectors: list[npt.NDArray[np.float32]] = field(default_factory=list)
    tokens: int = 0
    dropped: bool = False
    """Set on the loop when nobody waits for it any more."""


class EmbeddingWorker:
    """An `Encoder` with its thread; made, asked and closed on one event loop."""

    def __init__(self, encoder: Encoder, name: str, *, on_failed: Callable[[BaseException], None]) -> None:
        """`on_failed` is told, on the loop, when a run has failed: the worker is of no use then, and its requests are ended."""
        self._encoder = encoder
        self._name = name
        self._on_failed = on_failed
        self._loop = asyncio.get_running_loop()
        self._inbox: SimpleQueue[_Job | None] = SimpleQueue()
        self._jobs: dict[int, _Job] = {}
        self._ended: Refusal | None = None
        self._gone = asyncio.Event()
        self.context_length = encoder.max_tokens
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"encoder of {name}")
        self._thread.submit(self._run).add_done_callback(self._call_over)

    async def embed(self, texts: Texts) -> tuple[npt.NDArray[np.float32], int]:
        """The vectors of texts (or of ids of the model's own tokenizer), float32 [texts, size], and their tokens.

        Raises:
            Refusal: "invalid", "too_long", "unsupported" where the model makes no vectors, or "model_unavailable".
        """
        if self._encoder.kind != "vector":
            raise Refusal("unsupported", f"the model {self._name} makes no vectors", "ask an embedding model")
        if self._ended is not None:
            raise self._ended
        job = _Job(texts, self._loop.create_future())
        self._jobs[id(job)] = job
        self._inbox.put(job)
        try:
            return await job.future
        finally:
            job.dropped = True
            del self._jobs[id(job)]

    def end(self, refusal: Refusal) -> None:
        """End all requests under way, and refuse those that come, with `refusal`."""
        self._ended = refusal
        for job in self._jobs.values():
            _fail(job, refusal)

    def halt(self) -> None:
        """End what is under way, and the thread after its turn."""
        if self._ended is None:
            self.end(unavailable(f"the model {self._name} was unloaded", "ask again"))
        self._inbox.put(None)

    async def close(self) -> None:
        """Halt, and wait for the thread's end."""
        self.halt()
        await self._gone.wait()

    def _run(self) -> None:
        """The encoder's thread."""
        line: deque[_Job] = deque()
        while True:
            came: list[_Job | None] = [] if line else [self._inbox.get()]
            try:
                while True:
                    came.append(self._inbox.get_nowait())
            except Empty:
                pass
            for job in came:
                if job is None:
                    return
                line.append(job)
            line = deque(job for job in line if not job.dropped)
            self._turn(line)
            for job in [job for job in line if len(job.vectors) == len(job.texts)]:
                line.remove(job)
                self._tell(_finish, job)

    def _turn(self, line: deque[_Job]) -> None:
        """Some texts of every request."""
        share = max(1, TURN_TEXTS // max(1, len(line)))
        chosen: list[tuple[_Job, Prepared]] = []
        for job in list(line):
            try:
                chosen += [(job, text) for text in self._prepared(job, share)]
            except Refusal as refusal:
                line.remove(job)
                self._tell(_fail, job, refusal)
        for (job, text), result in zip(chosen, self._encoder.answer([text for _, text in chosen]), strict=True):
            assert isinstance(result, Vector)  # of a model that makes vectors
            job.vectors.append(result.values)
            job.tokens += len(text.tokens.ids)

    def _prepared(self, job: _Job, count: int) -> list[Prepared]:
        begin = len(job.vectors)
        texts = [
            text if isinstance(text, str) else self._encoder.tokenizer.decode(text)
            for text in job.texts[begin : begin + count]
        ]
        found: list[Prepared] = []
        for index, made in enumerate(self._encoder.prepare([TextInput(text) for text in texts]), begin):
            if isinstance(made, PromptError):
                raise Refusal("invalid", f"text {index}: {made.message}", made.hint, parameter="input")
            if made.tokens.is_cut:
                raise Refusal(
                    "too_long",
                    f"text {index} has {made.tokens.total} tokens; this model reads {self.context_length}",
                    "cut it into pieces",
                    parameter="input",
                )
            found.append(made)
        return found

    def _call_over(self, run: Future[None]) -> None:
        """On the encoder's thread, as its last."""
        self._tell(self._over, run.exception())

    def _tell(self, call: Callable[..., None], *arguments: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(call, *arguments)

    def _over(self, failure: BaseException | None) -> None:
        self._gone.set()
        self._thread.shutdown(wait=False)
        if failure is not None:
            self.end(unavailable(f"the model {self._name} failed: {in_words(failure)}", "ask again in a while"))
            self._on_failed(failure)


def _finish(job: _Job) -> None:
    if not job.future.done():
        job.future.set_result((np.stack(job.vectors), job.tokens))


def _fail(job: _Job, refusal: Refusal) -> None:
    if not job.future.done():
        job.future.set_exception(refusal)
