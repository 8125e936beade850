"""Whole layers of a small decoder, as they follow each other: what their parts, each measured by itself, do not tell.

In a chain of one kind of node its code and its numbers stay in the nearest caches, and its threads are at work already. Between
the products of a model, whose weights pass through those caches, they are not: so a chain of layers is measured as well, once
with weights from memory and once from the cache, and predictions make up for the difference. Knows no real model.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aiasst.artifacts.device import OverheadPoint
from aiasst.artifacts.model_folder import Role
from aiasst.profile.attention import HEAD_DIM, rotary
from aiasst.profile.fits import LAYER, LAYER_FORMAT, LAYER_PAST
from aiasst.profile.products import FORMS, Link, Numbers
from aiasst.profile.sampling import Clock, Trial, take_turns, visit_until_quiet
from aiasst.runtime.onnx_writer import Array, Node, Value, model_bytes
from aiasst.runtime.session import GraphSession, SessionSettings

ROWS = (1, 8)
_SECONDS = 0.2
"""For a visit."""
_CACHED_BYTES = 4 * 2**20
_LEAST_LAYERS = 2
_MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class _Subject:
    cached: bool
    rows: int
    trial: Trial = field(compare=False)


def measure_layers(
    threads: int, *, chain_bytes: int, seconds: float, clock: Clock = time.perf_counter
) -> tuple[OverheadPoint, ...]:
    """The time of a layer with few and many rows.

    Args:
        threads: of the session.
        chain_bytes: of weights that come from memory: more than the cache holds, less than there is memory for.
        seconds: after this long no visit is begun.
        clock: in seconds.
    """
    begun = clock()
    subjects = [_Subject(cached, rows, Trial(_nothing)) for cached in (False, True) for rows in ROWS]
    sessions: dict[int, GraphSession] = {}

    def visit(one: _Subject) -> bool:
        count = _count(_CACHED_BYTES if one.cached else chain_bytes)
        if count not in sessions:
            sessions.clear()
            settings = SessionSettings(threads=threads)
            sessions[count] = GraphSession.open(layer_chain(count), settings, settled=True)
        one.trial.run = _Bound(sessions[count], count, one.rows).run
        take_turns([one.trial], seconds=_SECONDS, clock=clock)
        one.trial.run = _nothing
        return True

    known = visit_until_quiet(subjects, visit, lambda one: one.trial.noise, lambda: clock() - begun > seconds)
    return tuple(
        OverheadPoint(
            kind="layer",
            rows=one.rows,
            vocabulary=0,
            threads=threads,
            microseconds=round(one.trial.best / _count(_CACHED_BYTES if one.cached else chain_bytes) * 1e6, 3),
            noise=round(one.trial.noise, 3),
            cached=one.cached,
        )
        for one in known
    )


def layer_chain(count: int) -> bytes:
    """`count` layers after each other: float32 [rows, 1, hidden] → the same, each layer with a cache of its own."""
    numbers, arrays = Numbers(0), _constants()
    cache = ("rows", LAYER.kv_heads, "capacity", HEAD_DIM)
    inputs = [Value("x0", np.float32, ("rows", 1, LAYER.hidden_size)), Value("lengths", np.int32, ("rows",))]
    inputs.append(Value("total", np.int32, ()))
    outputs = [Value(f"x{count}", np.float32, ("rows", 1, LAYER.hidden_size))]
    nodes: list[Node] = []
    for layer in range(count):
        inputs += [Value(name, np.float32, cache) for name in _cache_names("past", layer)]
        outputs += [Value(name, np.float32, cache) for name in _cache_names("present", layer)]
        links = _products(numbers, layer)
        nodes += _nodes(layer, links)
        arrays |= {name: array for link in links.values() for name, array in link.initializers.items()}
    return model_bytes(nodes, inputs, outputs, arrays, {"": 21, _MICROSOFT: 1})


def _products(numbers: Numbers, layer: int) -> dict[Role, Link]:
    """Role → its product, from role.x to role.y; the last one gives the next layer's input."""
    (form,) = (form for form in FORMS if form.label == LAYER_FORMAT)
    return {
        one.role: form.link(
            numbers,
            f"{one.role}{layer}",
            f"{one.role}{layer}.x",
            f"x{layer + 1}" if one.role == "down" else f"{one.role}{layer}.y",
            one.k,
            one.n,
        )
        for one in LAYER.products
    }


def _nodes(layer: int, links: Mapping[Role, Link]) -> list[Node]:
    """One layer, as model folders have it."""
    past, present = _cache_names("past", layer), _cache_names("present", layer)
    attributes = {"num_heads": LAYER.heads, "kv_num_heads": LAYER.kv_heads, "do_rotary": 1}
    attended = [f"qkv{layer}.y", "", "", *past, "lengths", "total", "cosines", "sines"]
    return [
        _norm(f"x{layer}", f"sum{layer}" if layer else "x0", f"qkv{layer}.x", f"between{layer}"),
        *links["qkv"].nodes,
        Node("GroupQueryAttention", attended, [f"o{layer}.x", *present], attributes, _MICROSOFT),
        *links["o"].nodes,
        _norm(f"o{layer}.y", f"between{layer}", f"gate_up{layer}.x", f"sum{layer + 1}"),
        *links["gate_up"].nodes,
        Node("Split", [f"gate_up{layer}.y"], [f"gate{layer}", f"up{layer}"], {"axis": -1, "num_outputs": 2}),
        Node("QuickGelu", [f"gate{layer}"], [f"activated{layer}"], {"alpha": 1.0}, _MICROSOFT),
        Node("Mul", [f"activated{layer}", f"up{layer}"], [f"down{layer}.x"]),
        *links["down"].nodes,
    ]


def _norm(x: str, residual: str, y: str, total: str) -> Node:
    return Node(
        "SkipSimplifiedLayerNormalization", [x, residual, "weight"], [y, "", "", total], {"epsilon": 1e-5}, _MICROSOFT
    )


def _constants() -> dict[str, Array]:
    return {"weight": np.ones(LAYER.hidden_size, np.float32), **rotary(LAYER_PAST + 1)}


def _cache_names(kind: str, layer: int) -> list[str]:
    return [f"{kind}.{layer}.key", f"{kind}.{layer}.value"]


def _count(size: int) -> int:
    weights = sum(product.k * product.n for product in LAYER.products)
    return max(_LEAST_LAYERS, round(size / (weights / 2)))


class _Bound:
    """The chain bound to caches and inputs of so many rows."""

    def __init__(self, session: GraphSession, count: int, rows: int) -> None:
        random = np.random.default_rng(0)
        self._session = session.session
        self._io = self._session.io_binding()
        x = random.standard_normal((rows, 1, LAYER.hidden_size), np.float32)
        self._held: list[Array] = []
        self._bind(self._io.bind_input, "x0", x)
        self._bind(self._io.bind_input, "lengths", np.full(rows, LAYER_PAST, np.int32))
        self._bind(self._io.bind_input, "total", np.array(LAYER_PAST + 1, np.int32))
        self._bind(self._io.bind_output, f"x{count}", np.empty_like(x))
        shape = (rows, LAYER.kv_heads, LAYER_PAST + 1, HEAD_DIM)
        for layer in range(count):
            for past, present in zip(_cache_names("past", layer), _cache_names("present", layer), strict=True):
                array = random.standard_normal(shape, np.float32)
                self._bind(self._io.bind_input, past, array)
                self._bind(self._io.bind_output, present, array)

    def run(self) -> None:
        """One step; the cache stays as long as it is."""
        self._session.run_with_iobinding(self._io)

    def _bind(self, bind: Any, name: str, array: Array) -> None:
        self._held.append(array)
        bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


def _nothing() -> None:
    """What a trial runs between two visits, so that no cache stays in memory."""
