"""What is neither product nor attention: launching a small node, and the engine around the session. Decides nothing.

The engine is the real one, on a decoder that answers at once with scores that were drawn before: what is left is the engine.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from aiasst.artifacts.device import OverheadPoint
from aiasst.engine.engine import Engine
from aiasst.engine.requests import Request, Sampling
from aiasst.profile.sampling import Clock, Trial, take_turns
from aiasst.runtime.onnx_writer import Node, Value, model_bytes
from aiasst.runtime.session import GraphSession, SessionSettings

NODES = 200
_WIDTH = 576
"""Numbers of a row: the small nodes of a model work on its hidden size."""
VOCABULARIES = (4096, 65536)
ROWS = (1, 8)
_STEPS = 8
_SECONDS = 0.15
_CONTEXT = 4096


def measure_overheads(threads: int, *, clock: Clock = time.perf_counter) -> tuple[OverheadPoint, ...]:
    """A node of a chain, and a step of the engine with few and many sequences and scores."""
    return (_node(threads, clock), *_steps(clock))


def _node(threads: int, clock: Clock) -> OverheadPoint:
    session = GraphSession.open(small_nodes(), SessionSettings(threads=threads))
    x = np.random.default_rng(0).standard_normal((1, _WIDTH), np.float32)
    (trial,) = take_turns([Trial(lambda: session.run({"x0": x}))], seconds=_SECONDS, clock=clock)
    return _point("node", 1, 0, threads, trial, NODES)


def small_nodes() -> bytes:
    """NODES norms over one row after each other: a node that the runtime neither folds nor fuses away."""
    weight = np.ones(_WIDTH, np.float32)
    nodes = [
        Node("SimplifiedLayerNormalization", [f"x{i}", "weight"], [f"x{i + 1}"], {"axis": -1, "epsilon": 1e-5})
        for i in range(NODES)
    ]
    ends = [Value(name, np.float32, ("rows", _WIDTH)) for name in ("x0", f"x{NODES}")]
    return model_bytes(nodes, ends[:1], ends[1:], {"weight": weight}, {"": 21})


def _steps(clock: Clock) -> list[OverheadPoint]:
    cases = list(itertools.product(VOCABULARIES, ROWS))
    trials = [Trial(_Stepping(rows, vocabulary).run) for vocabulary, rows in cases]
    take_turns(trials, seconds=_SECONDS * len(trials), clock=clock)
    return [_point("step", rows, size, 1, trial, _STEPS) for (size, rows), trial in zip(cases, trials, strict=True)]


class _Stepping:
    """An engine with `rows` answers under way, on a decoder that takes no time."""

    def __init__(self, rows: int, vocabulary: int) -> None:
        self._rows, self._vocabulary = rows, vocabulary
        self._begin()

    def run(self) -> None:
        """Some steps; begun anew where the answers have come to their end."""
        if self._left < _STEPS:
            self._begin()
        self._left -= _STEPS
        for _ in range(_STEPS):
            self._engine.step()

    def _begin(self) -> None:
        self._engine = Engine(
            _Instant(self._rows, self._vocabulary), slots=self._rows, prefix_bytes=0, clock=lambda: 0.0
        )
        sampling = Sampling(temperature=0, max_tokens=_CONTEXT - 4 * self._rows)
        for row in range(self._rows):
            self._engine.submit(Request(str(row), (row, row + 1), sampling))
        begun: set[str] = set()
        while len(begun) < self._rows:
            begun |= {event.request_id for event in self._engine.step()}
        self._left = _CONTEXT - 16 * self._rows


class _Instant:
    """A decoder of one small layer whose steps give scores that are there already."""

    layers, kv_heads, head_dim, weight_bytes, context_length = 1, 1, 16, 0, _CONTEXT
    cache_dtype = np.dtype(np.float32)

    def __init__(self, rows: int, vocabulary: int) -> None:
        self.vocab_size = vocabulary
        self._logits = np.random.default_rng(0).standard_normal((rows, vocabulary), np.float32)

    def step(
        self,
        ids: npt.NDArray[np.int64],
        lengths: Sequence[int],
        cache_rows: Sequence[npt.NDArray[Any]],
        all_logits: bool = False,
    ) -> npt.NDArray[np.float32]:
        """As a session's, of the last token of each row."""
        assert not all_logits
        return self._logits[: len(ids)]


def _point(kind: Any, rows: int, vocabulary: int, threads: int, trial: Trial, many: int) -> OverheadPoint:
    return OverheadPoint(
        kind=kind,
        rows=rows,
        vocabulary=vocabulary,
        threads=threads,
        microseconds=round(trial.best / many * 1e6, 3),
        noise=round(trial.noise, 3),
    )
