"""Spans of the engine and operators of the session as one trace file that Chrome (chrome://tracing) and Perfetto open.

Source: "Trace Event Format", Google: complete events (ph X) with microseconds, metadata events (ph M) for names. The engine's
spans and the operators stand on two threads of one process; within a thread, spans lie within each other or apart.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aiasst.artifacts.document import write_text_atomically
from aiasst.artifacts.model_folder import disk_errors
from aiasst.bench.operators import Roles, Run
from aiasst.bench.spans import Span
from aiasst.errors import UsageError

_PROCESS, _ENGINE, _OPERATORS = 1, 1, 2
_DETAILS = ("provider", "input_type_shape", "output_type_shape")
"""Of what ONNX Runtime tells of an operator; memory counts would make the file five times as large."""


def check_file(file: Path, *, force: bool) -> None:
    """Called before the work begins. Raises UsageError where the trace could not be written there."""
    elsewhere = "name another file: --trace trace.json"
    if file.is_dir():
        raise UsageError(f"{file} is a folder", elsewhere)
    if not file.resolve().parent.is_dir():
        raise UsageError(f"there is no folder {file.parent} for {file.name}", "make it, or choose another file")
    if file.exists() and not force:
        raise UsageError(f"{file} already exists", f"{elsewhere}, or --force to replace it")


def write(file: Path, document: Mapping[str, Any]) -> None:
    """Write the trace, whole or not at all. Raises ResourceError where the disk refuses it."""
    with disk_errors(file):
        write_text_atomically(file, json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")))


def trace_document(
    spans: Sequence[Span], runs: Sequence[tuple[Span, Run]], roles: Roles, *, name: str, facts: Mapping[str, str]
) -> dict[str, Any]:
    """The trace as it is written.

    Args:
        spans: of the engine; those of one kind apart from each other, phases within their steps.
        runs: of the session: by the engine's clock, and by the profile's, in their order.
        roles: what the operators work for.
        name: of the process.
        facts: about the machine, shown beside the trace.
    """
    origin = min((span.begin for span in spans), default=0.0)
    offset = clock_offset(runs) - origin * 1e6
    engine = [
        _event(span.name, "engine", _ENGINE, (span.begin - origin) * 1e6, span.seconds * 1e6, {}) for span in spans
    ]
    return {
        "traceEvents": [*_names(name), *engine, *_operator_events((run for _, run in runs), offset, roles)],
        "displayTimeUnit": "ms",
        "otherData": dict(facts),
    }


def clock_offset(runs: Sequence[tuple[Span, Run]]) -> float:
    """Microseconds to add to the profile's clock to get the engine's.

    Each run by the profile lies within the engine's span of it, which bounds the offset from both sides; the middle of the
    median bounds is taken, so that a run that was interrupted on its way in or out moves nothing.
    """
    if not runs:
        return 0.0
    least = statistics.median(span.begin * 1e6 - run.start for span, run in runs)
    most = statistics.median(span.end * 1e6 - run.start - run.duration for span, run in runs)
    return (least + most) / 2


def _names(process: str) -> list[dict[str, Any]]:
    threads = ((_ENGINE, "engine (Python)"), (_OPERATORS, "operators (ONNX Runtime)"))
    events = [_metadata("process_name", 0, {"name": process})]
    for number, name in threads:
        events.append(_metadata("thread_name", number, {"name": name}))
        events.append(_metadata("thread_sort_index", number, {"sort_index": number}))
    return events


def _metadata(name: str, thread: int, args: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "ph": "M", "pid": _PROCESS, "tid": thread, "args": args}


def _operator_events(runs: Iterable[Run], offset: float, roles: Roles) -> Iterable[dict[str, Any]]:
    for run in runs:
        # Before the first span of the engine there is nothing: a clock that differs by a hair must not make it so.
        shift = max(offset, -run.start)
        yield _event("model_run", "session", _OPERATORS, run.start + shift, run.duration, {})
        for operator in run.operators:
            details = {key: operator.details[key] for key in _DETAILS if key in operator.details}
            args = {"operator": operator.kind, "role": roles.role(operator), **details}
            if read := roles.weight_bytes(operator):
                args["weight_bytes"] = read
            yield _event(operator.name, "operator", _OPERATORS, operator.start + shift, operator.duration, args)


def _event(
    name: str, category: str, thread: int, start: float, duration: float, args: dict[str, Any]
) -> dict[str, Any]:
    """A complete event; times in microseconds, to the nanosecond."""
    return {
        "name": name, "cat": category, "ph": "X", "pid": _PROCESS, "tid": thread, "ts": round(start, 3),
        "dur": round(max(0.0, duration), 3), "args": args,
    }  # fmt: skip
