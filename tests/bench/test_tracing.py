"""A tiny decoder taken apart by the real profiler: every run found, the trace whole, nothing left behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aiasst.artifacts.device import DeviceConfig
from aiasst.artifacts.model_folder import ModelFolder
from aiasst.bench import bench, tracing
from aiasst.bench.measure import Amounts
from aiasst.bench.operators import BETWEEN, PYTHON
from aiasst.runtime.session import GraphSession, SessionSettings
from tests.bench.test_chrome_trace import check_format
from tests.runtime.graphs import LAYERS


def test_steps_are_taken_apart(
    tiny: ModelFolder, alone: DeviceConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    monkeypatch.chdir(tmp_path)
    found = tracing.trace(tiny, alone, Amounts(20, (1, 3), 8), {"model": "tiny"})
    assert list(found.decode) == [1, 3]
    for steps in (*found.decode.values(), found.prefill):
        rows = {row.operator: row for row in steps.rows}
        assert rows["GroupQueryAttention"].calls == LAYERS
        assert rows["GroupQueryAttention"].role == "attention"
        assert sum(row.share for row in steps.rows) == pytest.approx(1)
        assert rows[BETWEEN].share > 0 and rows[PYTHON].share > 0
    check_format(json.loads(json.dumps(found.document, allow_nan=False)))
    events = found.document["traceEvents"]
    runs = [event for event in events if event["name"] == "model_run"]
    assert len(runs) == 8 + 8 + tracing.PROMPTS
    names = [event["name"] for event in events]
    assert {"admit", "feed", "sample", "step", "session run", "decode, 1 sequence", "prefill, 20 tokens"} <= set(names)
    assert names.count("session run") == len(runs)
    # Every run of the profile lies within the engine's span of it, as far as the clocks can be told apart.
    spans = [event for event in events if event["name"] == "session run"]
    for span, run in zip(spans, runs, strict=True):
        assert span["ts"] - 2000 <= run["ts"] and run["ts"] + run["dur"] <= span["ts"] + span["dur"] + 2000
    assert list(place.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["temporary"]


def test_the_report_has_the_trace_and_its_file(tiny: ModelFolder, alone: DeviceConfig, tmp_path: Path) -> None:
    file = tmp_path / "steps.json"
    report = bench(tiny, alone, seconds=0.1, prompt_tokens=16, sequences=(2,), trace=file)
    assert report.trace is not None
    assert report.trace.file == str(file)
    assert [(part.name, part.sequences, part.tokens) for part in report.trace.parts] == [
        ("decode", 1, 1), ("decode", 2, 2), ("prefill", 1, 16),
    ]  # fmt: skip
    assert all(part.slowdown > 0 for part in report.trace.parts)
    check_format(json.loads(file.read_text(encoding="utf-8")))


def test_a_profile_goes_where_it_is_wanted(tiny: ModelFolder, tmp_path: Path) -> None:
    session = GraphSession.open(tiny.graph, SessionSettings(threads=1, profile=tmp_path / "wanted"))
    file = session.end_profiling()
    assert file.parent == tmp_path and file.name.startswith("wanted")
    assert isinstance(json.loads(file.read_text()), list)
