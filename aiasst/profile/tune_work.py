"""The work that settings are tuned by: a prompt read, one answer and several written, by the real engine. Searches nothing."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from aiasst.artifacts.device import Decisions, Hardware
from aiasst.artifacts.model_folder import ModelFolder
from aiasst.engine.engine import Engine
from aiasst.engine.forms import open_decoder
from aiasst.engine.requests import Request, Sampling
from aiasst.profile.tune import Setting, applied, middle

_PROMPT = 384
_STEPS = 12
_ROWS = 8
_REST_SECONDS = 0.05
"""Before each piece of work, so that the threads of another session that waited awake have gone to sleep."""
_OPEN = 2
"""Sessions that are open at once: the defaults' and one beside it."""


class Work:
    """A model folder, opened with one setting after the other; the first one that is asked for stays open."""

    def __init__(self, folder: ModelFolder, decisions: Decisions, hardware: Hardware) -> None:
        self._folder, self._decisions, self._hardware = folder, decisions, hardware
        self._engines: dict[Setting, Engine] = {}
        self._seed = 0

    def measure(self, setting: Setting) -> float:
        """Geometric mean of the seconds of the three pieces of work.

        Raises:
            ArtifactError: the folder is no text generator.
            ResourceError: memory is short.
        """
        engine = self._opened(setting)
        time.sleep(_REST_SECONDS)
        prompt = min(_PROMPT, engine.context_length // 2)
        rows = max(1, min(_ROWS, engine.stats.slots))
        return middle([self._read(engine, prompt), self._write(engine, 1), self._write(engine, rows)])

    def _opened(self, setting: Setting) -> Engine:
        if setting in self._engines:
            return self._engines[setting]
        if len(self._engines) >= _OPEN:
            self._engines.popitem()  # the latest: dictionaries keep their order, and the first is the defaults'
        decisions = applied(self._decisions, setting, self._hardware, "tried")
        engine = Engine(
            open_decoder(self._folder, decisions),
            slots=min(_ROWS, decisions.slots.value),
            memory_ceiling_bytes=decisions.memory_ceiling_bytes.value,
            chunk=setting.chunk,
            prefix_bytes=0,
            clock=lambda: 0.0,
        )
        self._engines[setting] = engine
        self._read(engine, min(_PROMPT, engine.context_length // 2))  # the first run allocates
        return engine

    def _read(self, engine: Engine, tokens: int) -> float:
        self._submit(engine, "prompt", tokens, 2)
        seconds = _timed(lambda: _until_event(engine))
        engine.cancel("prompt", silent=True)
        return seconds

    def _write(self, engine: Engine, rows: int) -> float:
        names = [f"{row}" for row in range(rows)]
        for name in names:
            self._submit(engine, name, 16, 4 * rows + _STEPS + 1)
        begun: set[str] = set()
        while len(begun) < rows:
            begun |= {event.request_id for event in engine.step()}
        seconds = _timed(lambda: [engine.step() for _ in range(_STEPS)])
        for name in names:
            engine.cancel(name, silent=True)
        return seconds

    def _submit(self, engine: Engine, name: str, prompt: int, answer: int) -> None:
        self._seed += 1
        ids = np.random.default_rng(self._seed).integers(0, engine.vocab_size, prompt)
        engine.submit(Request(name, tuple(ids.tolist()), Sampling(temperature=0, max_tokens=answer)))


def _until_event(engine: Engine) -> None:
    while not engine.step():
        pass


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
