"""What attention costs on this machine by the length of the past: the runtime's operator with a cache in float32 or int8.

The micro-model is a chain of GroupQueryAttention nodes with rotary positions, each with a cache of its own that is bound in
place, as in a model. Two numbers of heads are measured, since a node costs something whatever it attends to. Knows no model
and decides nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from aiasst.artifacts.device import AttentionPoint
from aiasst.profile.fits import CHAIN_LAYERS as LAYERS
from aiasst.profile.sampling import Clock, Trial, take_turns, visit_until_quiet
from aiasst.runtime.onnx_writer import Array, Node, Value, model_bytes
from aiasst.runtime.session import GraphSession, SessionSettings

HEADS, KV_HEADS, HEAD_DIM = 16, 4, 64
FEW_HEADS, FEW_KV_HEADS = 4, 2
CACHES: tuple[Literal["float32", "int8"], ...] = ("float32", "int8")
_SECONDS = 0.1
"""For one visit of a point, about."""
_SCALE = 0.05
"""Of the int8 cache: random keys are about as large as 1."""
_ROTARY_BASE = 10_000.0
_DRAWN = 2**18
"""Random numbers that caches are filled with, over and over."""


@dataclass(frozen=True)
class Case:
    """One size of attention."""

    rows: int
    new_tokens: int
    past: int
    heads: int = HEADS
    kv_heads: int = KV_HEADS

    @property
    def cache_bytes(self) -> int:
        """Of the whole chain in float32."""
        return 2 * LAYERS * self.rows * self.kv_heads * (self.past + self.new_tokens) * HEAD_DIM * 4


QUICK = (
    Case(1, 1, 64), Case(1, 1, 256), Case(8, 1, 16), Case(8, 1, 64),
    Case(1, 1, 64, FEW_HEADS, FEW_KV_HEADS), Case(8, 1, 64, FEW_HEADS, FEW_KV_HEADS),
    Case(1, 128, 0), Case(1, 256, 256), Case(1, 256, 1792), Case(1, 256, 256, FEW_HEADS, FEW_KV_HEADS),
)  # fmt: skip
"""Decoding with caches so small that they stay in the processor's, whatever the neighbours on the host leave of it."""
FULL = (*QUICK, Case(1, 1, 1024), Case(1, 1, 4096), Case(8, 1, 512), Case(1, 256, 3840))


@dataclass(frozen=True)
class _Subject:
    """A case with one kind of cache, and its times."""

    cache: Literal["float32", "int8"]
    case: Case
    trial: Trial = field(compare=False)


def measure_attention(
    cases: tuple[Case, ...], threads: int, *, free_bytes: int, seconds: float, clock: Clock = time.perf_counter
) -> tuple[AttentionPoint, ...]:
    """A point for each case and kind of cache; cases whose cache would take a quarter of `free_bytes` are left out.

    Raises:
        ArtifactError: this build of ONNX Runtime refuses the operator.
    """
    begun = clock()
    sessions: dict[tuple[str, int, int], GraphSession] = {}

    def visit(one: _Subject) -> bool:
        case = one.case
        key = one.cache, case.heads, case.kv_heads
        if key not in sessions:
            # The threads of one session wait awake for a while, which would disturb another.
            sessions.clear()
            sessions[key] = GraphSession.open(attention_chain(*key, _longest(cases)), SessionSettings(threads=threads))
        one.trial.run = Bound(sessions[key], one.cache, case).run
        take_turns([one.trial], seconds=_SECONDS, clock=clock)
        one.trial.run = _nothing
        return True

    wanted = [case for case in cases if 4 * case.cache_bytes <= free_bytes]
    subjects = [_Subject(cache, case, Trial(_nothing)) for cache in CACHES for case in wanted]
    known = visit_until_quiet(subjects, visit, lambda one: one.trial.noise, lambda: clock() - begun > seconds)
    return tuple(_point(one, threads) for one in known)


def attention_chain(cache: str, heads: int = HEADS, kv_heads: int = KV_HEADS, context: int = 4096) -> bytes:
    """LAYERS nodes after each other, with rotary tables for `context` tokens: packed queries, keys and values go into each."""
    packed = (heads + 2 * kv_heads) * HEAD_DIM
    dtype: npt.DTypeLike = np.float32 if cache == "float32" else np.int8
    lengths = [Value("lengths", np.int32, ("rows",)), Value("total", np.int32, ())]
    inputs, outputs, nodes = [Value("qkv", np.float32, ("rows", "new", packed)), *lengths], [], []
    arrays = rotary(context)
    attributes: dict[str, Any] = {"num_heads": heads, "kv_num_heads": kv_heads, "do_rotary": 1}
    if cache == "int8":
        arrays["scale"] = np.full((1, kv_heads, 1, HEAD_DIM), _SCALE, np.float32)
        attributes |= {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
    for layer in range(LAYERS):
        past = [f"past.{layer}.key", f"past.{layer}.value"]
        present = [f"present.{layer}.key", f"present.{layer}.value"]
        inputs += [Value(name, dtype, ("rows", kv_heads, "capacity", HEAD_DIM)) for name in past]
        outputs += [Value(name, dtype, ("rows", kv_heads, "capacity", HEAD_DIM)) for name in present]
        outputs.append(Value(f"y{layer}", np.float32, ("rows", "new", heads * HEAD_DIM)))
        names = ["qkv", "", "", *past, "lengths", "total", "cosines", "sines"]
        if cache == "int8":
            names += ["", "", "", "scale", "scale"]
        nodes.append(Node("GroupQueryAttention", names, [f"y{layer}", *present], attributes, "com.microsoft"))
    return model_bytes(nodes, inputs, outputs, arrays, {"": 21, "com.microsoft": 1})


def rotary(context: int) -> dict[str, Array]:
    """Tables [context, HEAD_DIM / 2] (Su et al., 2021: RoFormer)."""
    frequencies = _ROTARY_BASE ** (-np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    angles = np.arange(context)[:, None] * frequencies
    return {"cosines": np.cos(angles).astype(np.float32), "sines": np.sin(angles).astype(np.float32)}


class Bound:
    """The chain bound to caches and inputs of one case."""

    def __init__(self, session: GraphSession, cache: str, case: Case) -> None:
        random = np.random.default_rng(0)
        self._session = session.session
        self._io = self._session.io_binding()
        packed = (case.rows, case.new_tokens, (case.heads + 2 * case.kv_heads) * HEAD_DIM)
        total = case.past + case.new_tokens
        self._held: list[Array] = []
        self._bind("qkv", random.standard_normal(packed, np.float32))
        self._bind("lengths", np.full(case.rows, total - 1, np.int32))
        self._bind("total", np.array(total, np.int32))
        drawn = random.standard_normal(_DRAWN, np.float32)
        drawn = drawn if cache == "float32" else (drawn / _SCALE).clip(-127, 127).astype(np.int8)
        for layer in range(LAYERS):
            self._bind_output(f"y{layer}", np.empty((*packed[:2], case.heads * HEAD_DIM), np.float32))
            for kind in ("key", "value"):
                held = np.resize(drawn, (case.rows, case.kv_heads, total, HEAD_DIM))
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


def _longest(cases: tuple[Case, ...]) -> int:
    return max(case.past + case.new_tokens for case in cases)


def _nothing() -> None:
    """What a trial runs between two visits, so that no cache stays in memory."""


def _point(one: _Subject, threads: int) -> AttentionPoint:
    case = one.case
    return AttentionPoint(
        cache=one.cache,
        rows=case.rows,
        new_tokens=case.new_tokens,
        past=case.past,
        heads=case.heads,
        kv_heads=case.kv_heads,
        head_dim=HEAD_DIM,
        threads=threads,
        microseconds=round(one.trial.best / LAYERS * 1e6, 2),
        noise=round(one.trial.noise, 3),
    )
