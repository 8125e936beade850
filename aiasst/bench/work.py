"""The work that is measured: prompts read and tokens decoded by the real engine. Keeps no figures and decides nothing.

Prompts are random ids, other ones every time, so that nothing of them is in the cache. Answers never end by themselves.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from aiasst.artifacts.device import DeviceConfig
from aiasst.artifacts.model_folder import ModelFolder, Shape
from aiasst.bench.spans import Nobody, Watcher
from aiasst.engine.engine import Engine
from aiasst.engine.forms import forms_in_words, forms_of, open_decoder
from aiasst.engine.requests import Event, Request, Sampling
from aiasst.errors import ArtifactError
from aiasst.runtime.session import DecoderSession, GraphSession

DECODE_PROMPT = 16
"""Tokens before the first one that is decoded: few, so that decoding is measured and not attention to a long past."""
GREEDY = Sampling(temperature=0)


@dataclass(frozen=True)
class Sample:
    """One measurement."""

    tokens: int
    """Read or written."""
    steps: tuple[float, ...]
    """Seconds of each step of the engine, wall clock."""
    inside: tuple[float, ...]
    """Seconds of each step inside of ONNX Runtime's run."""
    joules: float | None = None
    """Of all steps together; None where the machine does not tell."""

    @property
    def seconds(self) -> float:
        """All steps together."""
        return sum(self.steps)


class Stopwatch:
    """Stands before an ONNX Runtime session, passes everything on, and adds up how long its runs take."""

    def __init__(self, session: Any, on_run: Callable[[float, float], None]) -> None:
        """`on_run` is told of each run: when it began and ended."""
        self._session = session
        self._on_run = on_run
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_with_iobinding(self, binding: Any) -> None:
        """As the session's own."""
        began = time.perf_counter()
        self._session.run_with_iobinding(binding)
        ended = time.perf_counter()
        self.seconds += ended - began
        self._on_run(began, ended)


class Bench:
    """A model folder opened as run opens it, with a stopwatch inside."""

    def __init__(
        self,
        folder: ModelFolder,
        config: DeviceConfig,
        *,
        slots: int,
        sampling: Sampling = GREEDY,
        joules: Callable[[], float | None] = lambda: None,
        profile: Path | None = None,
        watcher: Watcher = Nobody(),  # noqa: B008 - keeps nothing
    ) -> None:
        """Open the session and an engine of `slots` sequences, fewer where they do not fit under the config's ceiling.

        Limits of temperature and power are not kept: what is measured is the machine, not the pauses.

        Args:
            folder: the model.
            config: what to run on.
            slots: sequences at once, at most.
            sampling: of the answers.
            joules: what a meter has counted so far.
            profile: ONNX Runtime's profiler is on in the first form, and its file begins so; `end_profiling` ends it.
            watcher: told of every phase and run.

        Raises:
            ArtifactError: the folder is no text generator, or its graph is damaged.
            ResourceError: the execution provider does not load, or not even one sequence fits.
        """
        shape_of(folder)
        session = open_decoder(folder, config.decisions, profile=profile)
        self.forms = forms_in_words(folder, config.decisions)
        """A line on which forms of the model run, where it has two."""
        self._joules = joules
        self._first = forms_of(session)[0].graph
        self._watches = [_watched(form, watcher) for form in forms_of(session)]
        # The engine refuses numbers of answers that do not pay, by what it sees on its clock. Here all are to be measured:
        # on a clock that stands still none is dear. And a prompt that it has seen before must be read all the same.
        self.engine = Engine(
            session,
            slots=slots,
            memory_ceiling_bytes=config.decisions.memory_ceiling_bytes.value,
            prefix_bytes=0,
            clock=lambda: 0.0,
            on_phase=watcher.phase,
        )
        self.slots = self.engine.stats.slots
        """Short sequences that fit at once; `SMALLEST_CAPACITY` tokens are more than `decode` ever needs."""
        self._vocabulary = session.vocab_size
        self._sampling = sampling

    def prefill(self, tokens: int, seed: int) -> Sample:
        """Read one prompt; the seconds go from its submission to the first token of the answer."""
        self._submit("prompt", tokens, 2, seed)
        steps: list[tuple[float, float]] = []
        events: list[Event] = []
        before = self._joules()
        while not events:
            events = self._step(steps)
        after = self._joules()
        self.engine.cancel("prompt", silent=True)
        return _sample(tokens, steps, before, after)

    def decode(self, sequences: int, steps: int, seed: int) -> Sample:
        """Write `steps` tokens of each of `sequences` answers, all under way; their prompts are not counted."""
        names = [str(number) for number in range(sequences)]
        for number, name in enumerate(names):
            self._submit(name, DECODE_PROMPT, answer_tokens(sequences, steps), seed * 1000 + number)
        begun: set[str] = set()
        while len(begun) < sequences:
            begun |= {event.request_id for event in self.engine.step()}
        steps_taken: list[tuple[float, float]] = []
        before = self._joules()
        tokens = sum(event.token is not None for _ in range(steps) for event in self._step(steps_taken))
        after = self._joules()
        for name in names:
            self.engine.cancel(name, silent=True)
        return _sample(tokens, steps_taken, before, after)

    def end_profiling(self) -> Path:
        """Switch the profiler off that was asked for; the file with its profile."""
        return self._first.end_profiling()

    def _step(self, times: list[tuple[float, float]]) -> list[Event]:
        """A step of the engine; its seconds, and those inside of the session's run, are added to `times`."""
        inside, began = self._inside(), time.perf_counter()
        events = self.engine.step()
        times.append((time.perf_counter() - began, self._inside() - inside))
        return events

    def _inside(self) -> float:
        """Seconds that all runs so far have taken."""
        return sum(watch.seconds for watch in self._watches)

    def _submit(self, name: str, prompt: int, answer: int, seed: int) -> None:
        ids = np.random.default_rng(seed).integers(0, self._vocabulary, prompt)
        self.engine.submit(Request(name, tuple(ids.tolist()), replace(self._sampling, max_tokens=answer, seed=seed)))


def _watched(session: DecoderSession, watcher: Watcher) -> Stopwatch:
    """Put a stopwatch into a session; the graph itself may be another session's as well."""
    watch = Stopwatch(session.graph.session, watcher.run)
    session.graph = GraphSession(watch, session.graph.name)
    return watch


def _sample(tokens: int, times: list[tuple[float, float]], before: float | None, after: float | None) -> Sample:
    joules = None if before is None or after is None else after - before
    return Sample(tokens, tuple(wall for wall, _ in times), tuple(inside for _, inside in times), joules)


def shape_of(folder: ModelFolder) -> Shape:
    """The numbers of the architecture. Raises ArtifactError where `folder` is no text generator."""
    shape = folder.manifest.shape
    if shape is None or folder.manifest.task != "text-generation":
        raise ArtifactError(
            f"{folder.path} writes no text, and only that is measured", "name a folder that chat can run"
        )
    return shape


def answer_tokens(sequences: int, steps: int) -> int:
    """Room for an answer: `steps`, and what the first of them writes while the others come to join it, one after the other."""
    return 4 * sequences + steps
