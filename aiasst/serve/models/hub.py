"""The models of a service: loaded on first use, unloaded when memory is short. Makes `service.Service` true; knows no protocol.

A load runs on a thread, and requests for the model wait for it in its line, while other models go on answering. A model that cannot
be loaded, or whose engine fails, is "failed" with its reason; after a while the next request tries it again.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import NoReturn

from aiasst.artifacts.device import DeviceConfig
from aiasst.artifacts.model_folder import MANIFEST_NAME, ModelFolder
from aiasst.engine.defaults import default_sampling
from aiasst.engine.requests import Finished, Sampling
from aiasst.engine.text import TextEvent, TextRequest, Usage
from aiasst.errors import AiasstError, UsageError
from aiasst.profile.obey import named
from aiasst.serve.models.admission import Line
from aiasst.serve.models.embedder import EmbeddingWorker, Texts
from aiasst.serve.models.loading import GENERATES, config_for, needs_of, open_encoder, open_text
from aiasst.serve.models.memory import Held, Needs, ceilings, to_unload
from aiasst.serve.models.utilization import Utilization
from aiasst.serve.models.worker import TextWorker, in_words
from aiasst.serve.refusals import Refusal
from aiasst.serve.service import Caller, ModelState, State, Vectors
from aiasst.serve.settings import Limits
from aiasst.serve.watch import Unwatched, Watch
from aiasst.sizes import human_bytes
from aiasst.tokenizer import has_chat_template

RETRY_SECONDS = 10.0
"""After which a model that failed is tried again."""
MEMORY_PATIENCE = 60.0
"""Seconds for which a load waits for the memory that other models hold."""
_LOOK_SECONDS = 1.0
_STOPPING = Refusal("stopping", "the service is stopping", "ask another instance, or ask again later", retry_after=5.0)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served:
    """A model folder and what requests call it."""

    name: str
    folder: ModelFolder


@dataclass
class _Model:
    """A model and how it is."""

    name: str
    folder: ModelFolder
    config: DeviceConfig
    remarks: tuple[str, ...]
    needs: Needs
    sampling: Sampling
    line: Line
    created: int
    has_template: bool
    ceiling: int = 0
    state: State = "unloaded"
    problem: str = ""
    remedy: str = ""
    failed_at: float = 0.0
    asked_at: float = 0.0
    worker: TextWorker | None = None
    embedder: EmbeddingWorker | None = None
    loading: asyncio.Task[None] | None = None
    held: int = field(default=0)
    """Bytes of the ceiling that it has while it is loaded."""

    @property
    def generates(self) -> bool:
        return self.folder.manifest.task == GENERATES

    @property
    def idle(self) -> bool:
        return self.line.running == 0 and self.line.waiting == 0


class Hub:
    """Several models as one `Service`. `start` and `stop` it on the event loop that asks it."""

    def __init__(
        self,
        models: Sequence[Served],
        *,
        config: DeviceConfig | None = None,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        memory_bytes: int | None = None,
        speculate: bool = True,
        watch: Watch | None = None,
        utilization: Utilization | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is loaded yet.

        Args:
            models: in the order in which they are told; the first answers requests that name none.
            config: of the device, for all of them; None: this machine is asked briefly.
            limits: of each model's line, and when it may be unloaded.
            memory_bytes: what all models together may take; None: what the device config says.
            speculate: as in `TextEngine`.
            watch: told of every request.
            utilization: of the machine.
            clock: seconds that no setting of the time of day moves.

        Raises:
            UsageError: no model, or two of one name.
            ArtifactError: a folder holds nothing that can be served.
        """
        names = [model.name for model in models]
        if not models:
            raise UsageError("there is no model to serve", "name a model folder")
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UsageError(f"two models are called {twice}", "give one of them another name: NAME=DIR")
        self._limits = limits
        self._speculate = speculate
        self.watch = watch or Unwatched()
        self._clock = clock
        self._utilization = utilization or Utilization()
        self._models = {model.name: self._prepared(model, config) for model in models}
        decided = max(model.config.decisions.memory_ceiling_bytes.value for model in self._models.values())
        self.memory_bytes = decided if memory_bytes is None else memory_bytes
        together = ceilings(self.memory_bytes, [model.needs for model in self._models.values()])
        for model, ceiling in zip(self._models.values(), together, strict=True):
            model.ceiling = ceiling
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._memory = asyncio.Lock()
        self._looking: asyncio.Task[None] | None = None
        self._stopping: Refusal | None = None
        self._over = False
        """Whether nothing is loaded any more."""

    def _prepared(self, model: Served, config: DeviceConfig | None) -> _Model:
        obeyed = config_for(model.folder, config)
        return _Model(
            name=model.name,
            folder=model.folder,
            config=obeyed.config,
            remarks=obeyed.remarks,
            needs=needs_of(model.folder, obeyed.config),
            sampling=default_sampling(model.folder.path),
            line=Line(self._limits, crowded=self._is_crowded, clock=self._clock),
            created=int((model.folder.path / MANIFEST_NAME).stat().st_mtime),
            has_template=has_chat_template(model.folder.path),
        )

    @property
    def remarks(self) -> tuple[str, ...]:
        """Lines on which device config is obeyed, and which model can never be loaded, each once."""
        said = [remark for model in self._models.values() for remark in model.remarks]
        never = [model for model in self._models.values() if model.needs.least > self.memory_bytes]
        return tuple(dict.fromkeys([*said, *(f"{self._too_large(model)}: it cannot be loaded" for model in never)]))

    @property
    def machine(self) -> str:
        """This machine, in words."""
        return named(next(iter(self._models.values())).config.hardware)

    def start(self) -> None:
        """Begin to look at the machine's load, once a second."""
        self._utilization.sample()
        self._looking = asyncio.create_task(self._look())

    async def stop(self) -> None:
        """Take no more requests, let those under way end within the limit, then tell them, and let go of all models."""
        self._stopping = _STOPPING
        deadline = self._clock() + self._limits.stop_seconds
        while self._clock() < deadline and not all(model.idle for model in self._models.values()):
            await asyncio.sleep(0.05)
        await self.abort()

    async def abort(self) -> None:
        """End all requests at once, and let go of all models."""
        self.let_go()
        for model in self._models.values():
            if model.loading is not None:
                await asyncio.wait([model.loading])
            await self._unload(model)
        self._loader.shutdown(wait=False)

    def let_go(self) -> None:
        """End all requests and threads, and wait for nothing."""
        self._stopping, self._over = _STOPPING, True
        if self._looking is not None:
            self._looking.cancel()
        for model in self._models.values():
            for worker in (model.worker, model.embedder):
                if worker is not None:
                    worker.end(self._stopping)
                    worker.halt()

    def models(self) -> tuple[ModelState, ...]:
        """All models, in the order in which they were given."""
        return tuple(self._told(model) for model in self._models.values())

    def model(self, name: str) -> ModelState:
        """One of them; "" is the first. Raises Refusal ("not_found")."""
        return self._told(self._named(name))

    def defaults(self, model: str) -> Sampling:
        """What the model's checkpoint recommends where a request says nothing. Raises Refusal ("not_found")."""
        return self._named(model).sampling

    def utilization(self) -> float:
        """Of the machine, 0 to 1, as of a second ago; see utilization.py."""
        return self._utilization.value()

    def crowded(self, model: str) -> bool:
        """Whether a request for the model would have to wait, so that another instance had better take it."""
        return self._named(model).line.would_wait

    @property
    def accepting(self) -> bool:
        """False once a stop has begun."""
        return self._stopping is None

    @property
    def ready(self) -> bool:
        """Whether a request for the first model would be answered now or after loading it."""
        return self.accepting and self._named("").state not in ("failed", "unloading")

    async def generate(self, model: str, request: TextRequest, caller: Caller) -> AsyncGenerator[TextEvent, None]:
        """See `service.Service`."""
        entry, began = self._admitted(model, caller), self._clock()
        seen = _Seen(entry.name, caller.name, began)
        request = self._with_deadline(request)
        try:
            if not entry.generates:
                raise Refusal("unsupported", f"the model {entry.name} generates no text", "ask a model that does")
            async with entry.line.turn(priority=request.priority, patience=request.deadline_seconds):
                worker = await self._text_worker(entry)
                asked = self._with_rest(request, began)
                async with aclosing(worker.generate(asked)) as events:
                    async for event in events:
                        self._watch_event(seen, event)
                        yield event
        except Refusal as refusal:
            seen.failed = True
            if not seen.began:
                self.watch.refused(entry.name, caller.name, refusal.reason)
            raise
        finally:
            entry.asked_at = self._clock()
            if seen.began:
                # Who goes before the end has cancelled it.
                how = seen.finished if seen.finished is not None or seen.failed else "cancelled"
                self.watch.ended(entry.name, caller.name, how, seen.usage, self._clock() - began)

    async def embed(self, model: str, texts: Texts, caller: Caller) -> Vectors:
        """See `service.Service`."""
        entry, began = self._admitted(model, caller), self._clock()
        try:
            if entry.generates:
                raise Refusal("unsupported", f"the model {entry.name} makes no vectors", "ask an embedding model")
            async with entry.line.turn(patience=self._limits.deadline_seconds):
                await self._loaded(entry)
                assert entry.embedder is not None
                values, tokens = await entry.embedder.embed(texts)
        except Refusal as refusal:
            self.watch.refused(entry.name, caller.name, refusal.reason)
            raise
        finally:
            entry.asked_at = self._clock()
        self.watch.embedded(entry.name, caller.name, len(texts), tokens, self._clock() - began)
        return Vectors(values, tokens)

    def _watch_event(self, seen: _Seen, event: TextEvent) -> None:
        """Tell of one event of a request."""
        now = self._clock()
        if not seen.began:
            seen.began = True
            self.watch.began(seen.model, seen.caller)
        if event.text or event.tokens:
            if seen.last is None:
                self.watch.first_token(seen.model, now - seen.arrived)
            else:
                self.watch.next_token(seen.model, now - seen.last)
            seen.last = now
        if event.finished is not None:
            seen.finished, seen.usage = event.finished, event.usage

    def _admitted(self, model: str, caller: Caller) -> _Model:
        """The model, where requests are taken at all."""
        entry = self._named(model)
        if self._stopping is not None:
            self.watch.refused(entry.name, caller.name, self._stopping.reason)
            raise self._stopping
        return entry

    def _named(self, name: str) -> _Model:
        entry = next(iter(self._models.values())) if name == "" else self._models.get(name)
        if entry is None:
            known = ", ".join(self._models)
            raise Refusal("not_found", f"there is no model {name!r} here", f"ask one of: {known}", parameter="model")
        return entry

    def _told(self, model: _Model) -> ModelState:
        shape, loaded = model.folder.manifest.shape, model.worker or model.embedder
        return ModelState(
            name=model.name,
            kind="text-generation" if model.generates else "encoder",
            task=model.folder.manifest.task,
            state=model.state,
            problem=model.problem,
            created=model.created,
            weight_bytes=model.folder.weight_bytes,
            context_length=loaded.context_length if loaded is not None else shape.context_length if shape else 0,
            has_chat_template=model.has_template,
            running=model.line.running,
            waiting=model.line.waiting,
            stats=None if model.worker is None else model.worker.stats,
        )

    def _with_deadline(self, request: TextRequest) -> TextRequest:
        if request.deadline_seconds is not None or self._limits.deadline_seconds is None:
            return request
        return replace(request, deadline_seconds=self._limits.deadline_seconds)

    def _with_rest(self, request: TextRequest, began: float) -> TextRequest:
        """The request with what its time in line left of its deadline."""
        if request.deadline_seconds is None:
            return request
        left = request.deadline_seconds - (self._clock() - began)
        if left <= 0:
            raise Refusal(
                "deadline",
                f"{request.deadline_seconds:g} seconds were over before the request could begin",
                "allow it more time",
            )
        return replace(request, deadline_seconds=left)

    async def _text_worker(self, entry: _Model) -> TextWorker:
        await self._loaded(entry)
        assert entry.worker is not None
        return entry.worker

    async def _loaded(self, entry: _Model) -> None:
        """Return once the model is loaded.

        Raises:
            Refusal: "model_unavailable".
        """
        while entry.state != "ready":
            if self._over:
                raise _STOPPING
            if entry.state == "failed" and self._clock() - entry.failed_at < RETRY_SECONDS:
                self._refuse_failed(entry)
            if entry.loading is None:
                entry.loading = asyncio.create_task(self._load(entry))
            # Who leaves does not take the load with him: others wait for it too.
            await asyncio.shield(entry.loading)

    async def _load(self, entry: _Model) -> None:
        """Make room, and open the model on the loader's thread."""
        entry.state, entry.problem = "loading", ""
        began = self._clock()
        try:
            async with self._memory:
                await self._make_room(entry)
                entry.held = self._held_by(entry)
                await self._open(entry)
            entry.state = "ready"
            _log.info("model %s loaded in %.1f s", entry.name, self._clock() - began)
        except AiasstError as error:
            self._fail(entry, error)
        finally:
            entry.loading = None
            entry.asked_at = self._clock()
            if entry.state == "loading":  # an error of no kind of ours, which the task has
                self._fail(entry, None)

    async def _open(self, entry: _Model) -> None:
        loop = asyncio.get_running_loop()

        def failed(failure: BaseException) -> None:
            self._fail(entry, failure)

        if entry.generates:
            engine = await loop.run_in_executor(
                self._loader,
                lambda: open_text(entry.folder, entry.config, entry.ceiling, speculate=self._speculate),
            )
            entry.worker = TextWorker(engine, entry.name, on_failed=failed)
        else:
            encoder = await loop.run_in_executor(self._loader, lambda: open_encoder(entry.folder, entry.config))
            entry.embedder = EmbeddingWorker(encoder, entry.name, on_failed=failed)

    def _fail(self, entry: _Model, failure: BaseException | None) -> None:
        """Whatever was loaded is let go of; the next request after a while tries again."""
        entry.problem = "an internal error" if failure is None else in_words(failure)
        entry.remedy = failure.hint if isinstance(failure, AiasstError) else "see the log"
        entry.state, entry.failed_at = "failed", self._clock()
        entry.worker = entry.embedder = None
        entry.held = 0
        _log.error("model %s failed: %s", entry.name, entry.problem, exc_info=failure)

    def _refuse_failed(self, entry: _Model) -> NoReturn:
        left = max(1.0, entry.failed_at + RETRY_SECONDS - self._clock())
        raise Refusal(
            "model_unavailable",
            f"the model {entry.name} cannot be used: {entry.problem}",
            entry.remedy,
            retry_after=left,
        )

    def _held_by(self, entry: _Model) -> int:
        """What the model takes of the ceiling: its share, less weights that are in memory already for another of its folder."""
        place, identity = entry.folder.path.resolve(), entry.folder.identity
        shares = any(
            (other.folder.path.resolve(), other.folder.identity) == (place, identity)
            for other in self._models.values()
            if other is not entry and other.state == "ready" and other.generates
        )
        return entry.ceiling - (entry.needs.weights if shares else 0)

    async def _make_room(self, entry: _Model) -> None:
        """Unload what is idle until the model fits under the ceiling.

        Raises:
            Refusal: "model_unavailable" where others need their memory for too long.
        """
        if entry.needs.least > self.memory_bytes:
            raise Refusal(
                "model_unavailable",
                self._too_large(entry),
                "allow more with --memory, or take a smaller format",
            )
        patience = self._clock() + MEMORY_PATIENCE
        while (chosen := self._to_unload(entry)) is None:
            if self._stopping is not None:
                raise self._stopping
            if self._clock() > patience:
                raise Refusal(
                    "model_unavailable",
                    f"the model {entry.name} needs {human_bytes(self._held_by(entry))} of memory that other models hold",
                    "ask again when they have less to do, or allow more with --memory",
                    retry_after=self._limits.idle_unload_seconds,
                )
            await asyncio.sleep(0.1)
        for model in chosen:
            _log.info("model %s is unloaded to make room for %s", model.name, entry.name)
            await self._unload(model)

    def _too_large(self, entry: _Model) -> str:
        least, together = human_bytes(entry.needs.least), human_bytes(self.memory_bytes)
        return f"the model {entry.name} needs {least}, all models together may take {together}"

    def _to_unload(self, entry: _Model) -> list[_Model] | None:
        others = [model for model in self._models.values() if model is not entry and model.held]
        now = self._clock()
        held = [Held(model.held, now - model.asked_at if model.idle else None) for model in others]
        indices = to_unload(
            self.memory_bytes, self._held_by(entry), held, after_seconds=self._limits.idle_unload_seconds
        )
        return None if indices is None else [others[index] for index in indices]

    async def _unload(self, entry: _Model) -> None:
        workers = [worker for worker in (entry.worker, entry.embedder) if worker is not None]
        if not workers:
            return
        entry.state = "unloading"
        entry.worker = entry.embedder = None
        for worker in workers:
            await worker.close()
        del workers
        # Engine and session refer to each other; their memory is wanted now.
        await asyncio.get_running_loop().run_in_executor(self._loader, gc.collect)
        entry.held = 0
        if entry.state == "unloading":
            entry.state = "unloaded"

    def _is_crowded(self) -> bool:
        return self._utilization.value() > self._limits.most_utilization

    async def _look(self) -> None:
        """Look at the machine's load once a second, and let those begin that waited for it."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            self._utilization.sample()
            for model in self._models.values():
                model.line.look_again()


@dataclass
class _Seen:
    """What was seen of a request, for whoever counts."""

    model: str
    caller: str
    arrived: float
    began: bool = False
    last: float | None = None
    finished: Finished | None = None
    usage: Usage | None = None
    failed: bool = False
