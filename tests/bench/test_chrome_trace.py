"""The trace against the rules of its format, and two clocks brought together."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiasst.bench.chrome_trace import check_file, clock_offset, trace_document, write
from aiasst.bench.operators import Operator, Roles, Run
from aiasst.bench.spans import Recorder, Span
from aiasst.errors import UsageError

LONGEST = 1e12
"""Microseconds: a trace of more than eleven days has a clock that was not set off."""


def check_format(document: Any) -> None:
    """The rules of the "Trace Event Format" for what is used of it: JSON object format, events X and M."""
    assert isinstance(document["traceEvents"], list)
    assert document["displayTimeUnit"] in ("ms", "ns")
    assert all(isinstance(value, str) for value in document["otherData"].values())
    threads: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    named = set()
    for event in document["traceEvents"]:
        assert isinstance(event["name"], str) and event["name"]
        assert all(isinstance(event[key], int) for key in ("pid", "tid"))
        assert isinstance(event["args"], dict)
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name", "thread_sort_index")
            key = "sort_index" if event["name"] == "thread_sort_index" else "name"
            assert set(event["args"]) == {key}
            if event["name"] == "thread_name":
                named.add((event["pid"], event["tid"]))
        else:
            assert event["ph"] == "X"
            assert isinstance(event["cat"], str)
            assert all(math.isfinite(event[key]) and 0 <= event[key] < LONGEST for key in ("ts", "dur"))
            threads[event["pid"], event["tid"]].append(event)
    assert set(threads) <= named
    assert any(event["name"] == "process_name" for event in document["traceEvents"])
    for events in threads.values():
        check_nesting(events)


def check_nesting(events: list[dict[str, Any]]) -> None:
    """Events of a thread lie within each other or apart; a nanosecond is rounding."""
    open_ends: list[float] = []
    for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
        end = event["ts"] + event["dur"]
        while open_ends and open_ends[-1] <= event["ts"] + 0.0021:
            open_ends.pop()
        assert not open_ends or end <= open_ends[-1] + 0.0021, event
        open_ends.append(end)


def test_a_trace_keeps_the_rules_of_the_format() -> None:
    spans = [Span("step", 100.0, 100.01), Span("admit", 100.0, 100.001), Span("feed", 100.001, 100.009)]
    ran = Span("session run", 100.002, 100.008)
    operators = (
        Operator("lm_head", "MatMulNBits", 7000.0, 3000.0, {"provider": "CPUExecutionProvider", "node_index": "1"}),
        Operator("", "Add", 10_000.0, 2000.0),
    )
    runs = [(ran, Run(6999.0, 5500.0, operators))]
    document = trace_document([*spans, ran], runs, Roles({}), name="bench", facts={"model": "a"})
    with pytest.raises(AssertionError):  # every event must have a name
        check_format(document)
    named = [(ran, Run(6999.0, 5500.0, operators[:1]))]
    document = trace_document([*spans, ran], named, Roles({}), name="bench", facts={"model": "a"})
    check_format(json.loads(json.dumps(document, allow_nan=False)))
    found = {event["name"]: event for event in document["traceEvents"] if event["ph"] == "X"}
    assert (found["step"]["ts"], found["step"]["dur"]) == (0.0, pytest.approx(10_000))
    # The run of the profile lies within the engine's span of it.
    assert found["session run"]["ts"] <= found["model_run"]["ts"]
    assert found["lm_head"]["ts"] == pytest.approx(found["model_run"]["ts"] + 1, abs=0.01)
    assert found["lm_head"]["args"] == {"operator": "MatMulNBits", "role": "other", "provider": "CPUExecutionProvider"}


@given(
    st.floats(-1e9, 1e9),
    st.lists(st.tuples(st.floats(1, 50), st.floats(1, 5000), st.floats(1, 50)), min_size=1, max_size=20),
)
@settings(deadline=None)
def test_the_clocks_are_brought_together(offset: float, found: list[tuple[float, float, float]]) -> None:
    at, pairs = 0.0, []
    for before, ran, after in found:
        span = Span("session run", (at + offset) / 1e6, (at + offset + before + ran + after) / 1e6)
        pairs.append((span, Run(at + before, ran, ())))
        at += before + ran + after + 100
    slack = max(max(before, after) for before, _, after in found)
    assert clock_offset(pairs) == pytest.approx(offset, abs=slack + 1e-3)


def test_no_run_no_offset() -> None:
    assert clock_offset([]) == 0
    check_format(trace_document([], [], Roles({}), name="x", facts={}))


def test_a_recorder_makes_phases_into_steps() -> None:
    times = iter(float(n) for n in range(10))
    recorder = Recorder(lambda: next(times))
    for phase in ("admit", "feed", "sample", "", "admit", "feed", ""):
        recorder.phase(phase)
    recorder.run(1.2, 1.8)
    assert recorder.steps == [Span("step", 0, 3), Span("step", 4, 6)]
    assert [(span.name, span.begin, span.end) for span in recorder.phases] == [
        ("admit", 0, 1), ("feed", 1, 2), ("sample", 2, 3), ("admit", 4, 5), ("feed", 5, 6),
    ]  # fmt: skip
    assert recorder.runs == [Span("session run", 1.2, 1.8)]


def test_files_of_others_stay(tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    check_file(file, force=False)
    write(file, {"traceEvents": []})
    assert json.loads(file.read_text()) == {"traceEvents": []}
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json"]
    with pytest.raises(UsageError, match="already exists"):
        check_file(file, force=False)
    check_file(file, force=True)
    for wrong, words in ((tmp_path, "is a folder"), (tmp_path / "absent" / "a.json", "no folder")):
        with pytest.raises(UsageError, match=words):
            check_file(wrong, force=True)
