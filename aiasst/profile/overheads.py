"""What is neither product nor attention: a small node, by how much it goes over, and a step of the engine. Decides nothing.

Engine and session are the real ones, on a decoder that does next to nothing: scores are looked up that were drawn before.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np

from aiasst.artifacts import signature
from aiasst.artifacts.device import OverheadPoint
from aiasst.engine.engine import Engine
from aiasst.engine.requests import Request, Sampling
from aiasst.profile.fits import NODE_WIDTH as WIDTH
from aiasst.profile.sampling import Clock, Trial, take_turns, visit_until_quiet
from aiasst.runtime.onnx_writer import Array, Node, Value, model_bytes
from aiasst.runtime.session import DecoderSession, GraphSession, SessionSettings

NODES = 100
NODE_ROWS = (1, 8, 256)
VOCABULARIES = (4096, 65536)
ROWS = (1, 8)
_STEPS = 8
_SECONDS = 0.15
"""For a visit."""
_CONTEXT = 4096
_HEAD_DIM = 16
_TOKENS = 16
"""That have scores of their own; ids are counted modulo this."""


@dataclass(frozen=True)
class _Subject:
    """One kind and size, and its times."""

    kind: Literal["node", "step"]
    rows: int
    vocabulary: int
    trial: Trial = field(compare=False)


def measure_overheads(threads: int, *, seconds: float, clock: Clock = time.perf_counter) -> tuple[OverheadPoint, ...]:
    """A node of a chain with few and many rows, and a step of the engine with few and many sequences and scores."""
    begun = clock()
    subjects = [_Subject("node", rows, 0, Trial(_nothing)) for rows in NODE_ROWS]
    sizes = itertools.product(VOCABULARIES, ROWS)
    subjects += [_Subject("step", rows, vocabulary, Trial(_nothing)) for vocabulary, rows in sizes]

    def visit(one: _Subject) -> bool:
        one.trial.run = _running(one, threads)
        take_turns([one.trial], seconds=_SECONDS, clock=clock)
        one.trial.run = _nothing
        return True

    known = visit_until_quiet(subjects, visit, lambda one: one.trial.noise, lambda: clock() - begun > seconds)
    return tuple(_point(one, threads) for one in known)


def _running(one: _Subject, threads: int) -> Any:
    settings = SessionSettings(threads=threads)
    if one.kind == "step":
        return _Stepping(one.rows, one.vocabulary, settings).run
    session = GraphSession.open(small_nodes(), settings)
    random = np.random.default_rng(0)
    x, skip = random.standard_normal((2, 1, one.rows, WIDTH), np.float32)
    return partial(session.run, {"x0": x, "skip0": skip})


def small_nodes() -> bytes:
    """NODES norms after each other, each with the residual before it: most of a layer's small nodes are of this kind."""
    weight = np.ones(WIDTH, np.float32)
    nodes = [
        Node(
            "SkipSimplifiedLayerNormalization",
            [f"x{i}", f"skip{i}", "weight"],
            [f"x{i + 1}", "", "", f"skip{i + 1}"],
            {"epsilon": 1e-5},
            "com.microsoft",
        )
        for i in range(NODES)
    ]
    shape = (1, "rows", WIDTH)
    inputs = [Value(name, np.float32, shape) for name in ("x0", "skip0")]
    outputs = [Value(f"x{NODES}", np.float32, shape)]
    return model_bytes(nodes, inputs, outputs, {"weight": weight}, {"": 21, "com.microsoft": 1})


class _Stepping:
    """An engine with `rows` answers under way, on a decoder that takes next to no time."""

    def __init__(self, rows: int, vocabulary: int, settings: SessionSettings) -> None:
        self._rows = rows
        graph = GraphSession.open(instant_decoder(vocabulary), settings)
        self._session = DecoderSession(graph, context_length=_CONTEXT)
        self._begin()

    def run(self) -> None:
        """Some steps; begun anew where the answers have come to their end."""
        if self._left < _STEPS:
            self._begin()
        self._left -= _STEPS
        for _ in range(_STEPS):
            self._engine.step()

    def _begin(self) -> None:
        self._engine = Engine(self._session, slots=self._rows, prefix_bytes=0, clock=lambda: 0.0)
        sampling = Sampling(temperature=0, max_tokens=_CONTEXT - 4 * self._rows)
        for row in range(self._rows):
            self._engine.submit(Request(str(row), (row, row + 1), sampling))
        begun: set[str] = set()
        while len(begun) < self._rows:
            begun |= {event.request_id for event in self._engine.step()}
        self._left = _CONTEXT - 16 * self._rows


def instant_decoder(vocabulary: int) -> bytes:
    """A decoder of one layer with one small head, whose scores are looked up by the last token."""
    random = np.random.default_rng(0)
    past, present = signature.cache_pairs(1), [name for _, name in signature.cache_pairs(1)]
    cache = ("batch", 1, "capacity", _HEAD_DIM)
    ids = ("batch", "sequence")
    nodes = [
        Node("ReduceSum", [signature.ATTENTION_MASK, "last"], ["tokens"], {"keepdims": 0}),
        Node("Sub", ["tokens", "one"], ["before"]),
        Node("Cast", ["before"], ["lengths"], {"to": _INT32}),
        Node("Shape", [signature.ATTENTION_MASK], ["shape"]),
        Node("Gather", ["shape", "one"], ["width"]),
        Node("Cast", ["width"], ["total"], {"to": _INT32}),
        Node("Mod", [signature.INPUT_IDS, "known"], ["token"]),
        Node("Gather", ["vectors", "token"], ["qkv"]),
        Node(
            "GroupQueryAttention",
            ["qkv", "", "", *(name for name, _ in past), "lengths", "total"],
            ["attended", *present],
            {"num_heads": 1, "kv_num_heads": 1},
            "com.microsoft",
        ),
        Node("Gather", ["scores", "token"], [signature.LOGITS]),
    ]
    inputs = [Value(signature.INPUT_IDS, np.int64, ids), Value(signature.ATTENTION_MASK, np.int64, ("batch", "all"))]
    inputs += [Value(name, np.float32, cache) for name, _ in past]
    outputs = [Value(signature.LOGITS, np.float32, (*ids, vocabulary))]
    outputs += [Value(name, np.float32, cache) for name in present]
    arrays: dict[str, Array] = {
        "last": np.array([1], np.int64),
        "one": np.array(1, np.int64),
        "known": np.array(_TOKENS, np.int64),
        "vectors": random.standard_normal((_TOKENS, 3 * _HEAD_DIM), np.float32),
        "scores": random.standard_normal((_TOKENS, vocabulary), np.float32),
    }
    return model_bytes(nodes, inputs, outputs, arrays, {"": 21, "com.microsoft": 1})


_INT32 = 6
"""TensorProto.DataType."""


def _nothing() -> None:
    """What a trial runs between two visits, so that no session stays in memory."""


def _point(one: _Subject, threads: int) -> OverheadPoint:
    return OverheadPoint(
        kind=one.kind,
        rows=one.rows,
        vocabulary=one.vocabulary,
        threads=threads,
        microseconds=round(one.trial.best / (NODES if one.kind == "node" else _STEPS) * 1e6, 3),
        noise=round(one.trial.noise, 3),
    )
