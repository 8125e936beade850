"""What attention costs on this machine by the length of the past: the runtime's operator with a cache in float32 or int8.

The micro-model is a chain of GroupQueryAttention nodes, each with a cache of its own that is bound in place, so that keys and
values come from where they come from in a model. Knows no model and decides nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aiasst.artifacts.device import AttentionPoint
from aiasst.profile.sampling import QUIET, Clock, Trial, take_turns
from aiasst.runtime.onnx_writer import Array, Node, Value, model_bytes
from aiasst.runtime.session import GraphSession, SessionSettings

HEADS, KV_HEADS, HEAD_DIM = 16, 4, 64
LAYERS = 4
CACHES: tuple[Any, ...] = ("float32", "int8")
_SECONDS = 0.15
"""For one point, about."""
_VISITS = 3
"""Of one point, at most, where it is noisy."""
_SCALE = 0.05
"""Of the int8 cache: random keys are about as large as 1."""


@dataclass(frozen=True)
class Case:
    """One size of attention."""

    rows: int
    new_tokens: int
    past: int


QUICK = (
    Case(1, 1, 64), Case(1, 1, 1024), Case(8, 1, 64), Case(8, 1, 1024), Case(1, 128, 0), Case(1, 256, 256), Case(1, 256, 1792),
)  # fmt: skip
FULL = (*QUICK, Case(1, 1, 256), Case(1, 1, 4096), Case(8, 1, 256), Case(1, 256, 3840))


def measure_attention(
    cases: tuple[Case, ...], threads: int, *, free_bytes: int, seconds: float, clock: Clock = time.perf_counter
) -> tuple[AttentionPoint, ...]:
    """A point for each case and kind of cache; cases whose cache would take a quarter of `free_bytes` are left out.

    Raises:
        ArtifactError: this build of ONNX Runtime refuses the operator.
    """
    points: list[AttentionPoint] = []
    begun = clock()
    for cache in CACHES:
        session = GraphSession.open(attention_chain(cache), SessionSettings(threads=threads))
        for case in cases:
            if clock() - begun > seconds or 4 * _cache_bytes(case) > free_bytes:
                continue
            trial = Trial(Bound(session, cache, case).run)
            for _ in range(_VISITS):
                take_turns([trial], seconds=_SECONDS, clock=clock)
                if trial.noise <= QUIET or clock() - begun > seconds:
                    break
            points.append(_point(cache, case, trial, threads))
    return tuple(points)


def attention_chain(cache: str) -> bytes:
    """LAYERS nodes after each other: packed queries, keys and values go into each; rotary tables are left out."""
    packed = (HEADS + 2 * KV_HEADS) * HEAD_DIM
    dtype: npt.DTypeLike = np.float32 if cache == "float32" else np.int8
    lengths = [Value("lengths", np.int32, ("rows",)), Value("total", np.int32, ())]
    inputs, outputs, nodes = [Value("qkv", np.float32, ("rows", "new", packed)), *lengths], [], []
    scales: dict[str, Array] = {}
    attributes: dict[str, Any] = {"num_heads": HEADS, "kv_num_heads": KV_HEADS}
    if cache == "int8":
        scales["scale"] = np.full((1, KV_HEADS, 1, HEAD_DIM), _SCALE, np.float32)
        attributes |= {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
    for layer in range(LAYERS):
        past = [f"past.{layer}.key", f"past.{layer}.value"]
        present = [f"present.{layer}.key", f"present.{layer}.value"]
        inputs += [Value(name, dtype, ("rows", KV_HEADS, "capacity", HEAD_DIM)) for name in past]
        outputs += [Value(name, dtype, ("rows", KV_HEADS, "capacity", HEAD_DIM)) for name in present]
        outputs.append(Value(f"y{layer}", np.float32, ("rows", "new", HEADS * HEAD_DIM)))
        names = ["qkv", "", "", *past, "lengths", "total"]
        if scales:
            names += ["", "", "", "", "", "scale", "scale"]
        nodes.append(Node("GroupQueryAttention", names, [f"y{layer}", *present], attributes, "com.microsoft"))
    return model_bytes(nodes, inputs, outputs, scales, {"": 21, "com.microsoft": 1})


class Bound:
    """The chain bound to caches and inputs of one case."""

    def __init__(self, session: GraphSession, cache: str, case: Case) -> None:
        random = np.random.default_rng(0)
        shape = (case.rows, KV_HEADS, case.past + case.new_tokens, HEAD_DIM)
        self._session = session.session
        self._io = self._session.io_binding()
        packed = (case.rows, case.new_tokens, (HEADS + 2 * KV_HEADS) * HEAD_DIM)
        total = case.past + case.new_tokens
        self._held: list[Array] = []
        self._bind("qkv", random.standard_normal(packed, np.float32))
        self._bind("lengths", np.full(case.rows, total - 1, np.int32))
        self._bind("total", np.array(total, np.int32))
        for layer in range(LAYERS):
            self._bind_output(f"y{layer}", np.empty((*packed[:2], HEADS * HEAD_DIM), np.float32))
            for kind in ("key", "value"):
                made = random.standard_normal(shape, np.float32)
                held = made if cache == "float32" else (made / _SCALE).clip(-127, 127).astype(np.int8)
                self._bind(f"past.{layer}.{kind}", held)
                self._bind_output(f"present.{layer}.{kind}", held)

    def run(self) -> None:
        """Attend once in every layer; the cache stays as long as it is."""
        self._session.run_with_iobinding(self._io)

    def _bind(self, name: str, array: Array) -> None:
        self._held.append(array)
        self._io.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def _bind_output(self, name: str, array: Array) -> None:
        self._held.append(array)
        self._io.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


def _cache_bytes(case: Case) -> int:
    return 2 * LAYERS * case.rows * KV_HEADS * (case.past + case.new_tokens) * HEAD_DIM * 4


def _point(cache: Any, case: Case, trial: Trial, threads: int) -> AttentionPoint:
    return AttentionPoint(
        cache=cache,
        rows=case.rows,
        new_tokens=case.new_tokens,
        past=case.past,
        heads=HEADS,
        kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        threads=threads,
        microseconds=round(trial.best / LAYERS * 1e6, 2),
        noise=round(trial.noise, 3),
    )
