"""The work that is measured: prompts read and tokens decoded by the real engine. Keeps no figures and decides nothing.

Prompts are random ids, other ones every time, so that nothing of them is in the cache. Answers never end by themselves.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from aiasst.artifacts.device import DeviceConfig
from aiasst.artifacts.model_folder import ModelFolder, Shape
from aiasst.engine.engine import Engine
from aiasst.engine.forms import forms_in_words, forms_of, open_decoder
from aiasst.engine.requests import Event, Request, Sampling
from aiasst.errors import ArtifactError
from aiasst.runtime.session import DecoderSession

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

    @property
    def seconds(self) -> float:
        """All steps together."""
        return sum(self.steps)


class Stopwatch:
    """Stands before an ONNX Runtime session, passes everything on, and adds up how long its runs take."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_with_iobinding(self, binding: Any) -> None:
        """As the session's own."""
        began = time.perf_counter()
        self._session.run_with_iobinding(binding)
        self.seconds += time.perf_counter() - began


class Bench:
    """A model folder opened as run opens it, with a stopwatch inside."""

    def __init__(self, folder: ModelFolder, config: DeviceConfig, *, slots: int, sampling: Sampling = GREEDY) -> None:
        """Open the session and an engine of `slots` sequences, fewer where they do not fit under the config's ceiling.

        Raises:
            ArtifactError: the folder is no text generator, or its graph is damaged.
            ResourceError: the execution provider does not load, or not even one sequence fits.
        """
        shape_of(folder)
        session = open_decoder(folder, config.decisions)
        self.forms = forms_in_words(folder, config.decisions)
        """A line on which forms of the model run, where it has two."""
        self._watches = [_watched(form) for form in forms_of(session)]
        # The engine refuses numbers of answers that do not pay, by what it sees on its clock. Here all are to be measured:
        # on a clock that stands still none is dear. And a prompt that it has seen before must be read all the same.
        self.engine = Engine(
            session,
            slots=slots,
            memory_ceiling_bytes=config.decisions.memory_ceiling_bytes.value,
            prefix_bytes=0,
            clock=lambda: 0.0,
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
        while not events:
            events = self._step(steps)
        self.engine.cancel("prompt", silent=True)
        return _sample(tokens, steps)

    def decode(self, sequences: int, steps: int, seed: int) -> Sample:
        """Write `steps` tokens of each of `sequences` answers, all under way; their prompts are not counted."""
        names = [str(number) for number in range(sequences)]
        for number, name in enumerate(names):
            self._submit(name, DECODE_PROMPT, answer_tokens(sequences, steps), seed * 1000 + number)
        begun: set[str] = set()
        while len(begun) < sequences:
            begun |= {event.request_id for event in self.engine.step()}
        steps_taken: list[tuple[float, float]] = []
        tokens = sum(event.token is not None for _ in range(steps) for event in self._step(steps_taken))
        for name in names:
            self.engine.cancel(name, silent=True)
        return _sample(tokens, steps_taken)

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


def _watched(session: DecoderSession) -> Stopwatch:
    """Put a stopwatch into a session."""
    watch = Stopwatch(session.graph.session)
    session.graph.session = watch
    return watch


def _sample(tokens: int, times: list[tuple[float, float]]) -> Sample:
    return Sample(tokens, tuple(wall for wall, _ in times), tuple(inside for _, inside in times))


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
