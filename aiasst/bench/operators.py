"""A profile of ONNX Runtime → where time goes, by operator and by what it works for. Pure: runs nothing and reads no file.

A profile is a list of events: an event a node, in the order of its runs, and behind the nodes of each run an event `model_run`.
A node's name tells what it works for, because convert and quantize named the products by their weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiasst.artifacts.model_folder import Weight

BETWEEN, PYTHON = "between operators, and the profiler", "outside of the session"
"""What a step takes beside its operators: ONNX Runtime itself with its profiler (some µs an operator), and our own Python."""
_SUFFIX = "_kernel_time"
_PRODUCT = re.compile(r"MatMul|Gemm")
_NORM = re.compile(r"Norm")
_ACTIVATIONS = re.compile(r"\.(rows|magnitude|peak|safe_peak|scale|count|zero_point|uint8|column|leading|shape)$")
"""Names that w8a8 gives to what quantizes its activations, behind the name of what computed them."""
_LOOKUPS = frozenset({"Gather", "GatherBlockQuantized"})


@dataclass(frozen=True)
class Operator:
    """One node of the graph in one run; times in microseconds on the profile's own clock."""

    name: str
    kind: str
    start: float
    duration: float
    details: Mapping[str, Any] = field(default_factory=dict)
    """As ONNX Runtime tells them."""


@dataclass(frozen=True)
class Run:
    """One run of the session."""

    start: float
    duration: float
    operators: tuple[Operator, ...]


@dataclass(frozen=True)
class Pass:
    """A piece of work that is repeated: a step of decoding, or all steps that read a prompt."""

    seconds: float
    """By the engine's clock, from the beginning of the first step to the end of the last."""
    inside: float
    """Seconds of it in the session's run."""
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Row:
    """What one kind of operator, working for one thing, takes of a pass."""

    operator: str
    role: str
    """That of its weight (gate_up, down, …), or what else it belongs to: attention, norm, embed, mlp (between its products),
    activations (quantizing them), lengths (of sequences, and which rows are wanted), other."""
    calls: float
    milliseconds: float
    share: float
    gigabytes_per_second: float | None
    """At which it reads its weights; None where it has none."""


@dataclass(frozen=True)
class Breakdown:
    """Where a pass goes; shares add up to 1."""

    passes: int
    """That were counted: the faster half, since others at work only ever take time away."""
    milliseconds: float
    rows: tuple[Row, ...]
    """The longest first; then what is no operator."""


def runs_of(events: Iterable[Mapping[str, Any]]) -> list[Run]:
    """The runs in a profile, in their order."""
    runs: list[Run] = []
    operators: list[Operator] = []
    for event in events:
        if event.get("ph") != "X":
            continue
        start, duration, name = float(event["ts"]), float(event["dur"]), str(event["name"])
        if name == "model_run":
            end = start + duration
            # Both ends are cut to whole microseconds, so that the last operator may seem to end after its run.
            kept = (
                Operator(o.name, o.kind, o.start, min(o.duration, max(0.0, end - o.start)), o.details)
                for o in operators
            )
            runs.append(Run(start, duration, tuple(kept)))
            operators = []
        elif event.get("cat") == "Node" and name.endswith(_SUFFIX):
            details = event.get("args", {})
            kind = str(details.get("op_name", "unknown"))
            operators.append(Operator(name.removesuffix(_SUFFIX), kind, start, duration, details))
    return runs


class Roles:
    """What a node works for, by its name and the manifest's table of weights."""

    def __init__(self, weights: Mapping[str, Weight]) -> None:
        self._weights: dict[str, Weight] = {}
        self._bytes: dict[str, int] = {}
        for name, weight in weights.items():
            stem = name.removesuffix(".weight")
            if weight.rows is not None:
                # A piece lm_head.0-1024 is multiplied by the node lm_head.0.
                stem = stem.rpartition("-")[0]
            self._weights[stem] = weight
            shared = weights.get(weight.shared_with or "", weight)
            self._bytes[stem] = shared.bytes

    def role(self, operator: Operator) -> str:
        """See `Row.role`."""
        if _ACTIVATIONS.search(operator.name):
            return "activations"
        if (stem := self._stem(operator.name)) is not None:
            return self._weights[stem].role
        if "Attention" in operator.kind:
            return "attention"
        if _NORM.search(operator.kind):
            return "norm"
        if operator.name.startswith(("lengths/", "rows/")):
            return "lengths"
        if operator.kind in _LOOKUPS and _gives_vectors(operator.details):
            return "embed"
        return "mlp" if "mlp" in operator.name else "other"

    def weight_bytes(self, operator: Operator) -> int:
        """Bytes of the weight that a product reads; 0 for all others."""
        stem = self._stem(operator.name) if _PRODUCT.search(operator.kind) else None
        return 0 if stem is None else self._bytes[stem]

    def _stem(self, name: str) -> str | None:
        """The longest beginning of a node's name that is a weight's: layers.0.o_proj of layers.0.o_proj.integer."""
        while name and name not in self._weights:
            cut = max(name.rfind("."), name.rfind("/"))
            name = name[: max(cut, 0)]
        return name or None


def _gives_vectors(details: Mapping[str, Any]) -> bool:
    """Whether rows of a table are given for [batch, tokens]: what embeddings do and no other Gather."""
    shapes = [next(iter(entry.values())) for entry in details.get("output_type_shape", ()) if entry]
    return bool(shapes) and len(shapes[0]) == 3


def breakdown(passes: Sequence[Pass], weights: Mapping[str, Weight]) -> Breakdown:
    """Where the faster half of `passes` (one at least) goes, a pass on average."""
    kept = sorted(passes, key=lambda one: one.seconds)[: math.ceil(len(passes) / 2)]
    count, roles = len(kept), Roles(weights)
    total = sum(one.seconds for one in kept) * 1e6
    sums: dict[tuple[str, str], tuple[int, float, int]] = {}
    for operator in (operator for one in kept for run in one.runs for operator in run.operators):
        key = operator.kind, roles.role(operator)
        calls, duration, read = sums.get(key, (0, 0.0, 0))
        sums[key] = calls + 1, duration + operator.duration, read + roles.weight_bytes(operator)
    rows = [
        Row(kind, role, calls / count, us / count / 1000, us / total, read / us / 1000 if read and us else None)
        for (kind, role), (calls, us, read) in sums.items()
    ]
    rows.sort(key=lambda row: row.milliseconds, reverse=True)
    inside = sum(one.inside for one in kept) * 1e6
    working = sum(us for _, us, _ in sums.values())
    rest = ((BETWEEN, "onnxruntime", max(0.0, inside - working)), (PYTHON, "python", max(0.0, total - inside)))
    rows += [Row(name, role, 0.0, us / count / 1000, us / total, None) for name, role, us in rest]
    return Breakdown(count, total / count / 1000, tuple(rows))
