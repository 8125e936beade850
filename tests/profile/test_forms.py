"""The runs of two forms are measured in turn, on the model itself, and only where both may be opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiasst.artifacts.device import Costs, TwinDecision
from aiasst.artifacts.model_folder import ModelFolder
from aiasst.profile import forms, quick_config
from aiasst.profile.forms import measure_forms, measure_point
from aiasst.progress import Progress
from aiasst.runtime.session import DecoderSession, GraphSession, SessionSettings
from tests.runtime.graphs import CONTEXT, tiny_decoder


@pytest.fixture
def sessions(tmp_path: Path) -> tuple[DecoderSession, DecoderSession]:
    graphs = [GraphSession.open(tiny_decoder(tmp_path / f"{n}.onnx"), SessionSettings(threads=1)) for n in "ab"]
    first, second = (DecoderSession(graph, context_length=CONTEXT) for graph in graphs)
    return first, second


def test_a_point_has_both_times(sessions: tuple[DecoderSession, DecoderSession]) -> None:
    point = measure_point(*sessions, 16)
    assert point.tokens == 16 and point.noise >= 0
    assert point.first_milliseconds > 0 and point.twin_milliseconds > 0


def test_all_sizes_that_the_context_holds(
    sessions: tuple[DecoderSession, DecoderSession], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = iter(sessions)
    monkeypatch.setattr(forms.DecoderSession, "open", lambda *_, **__: next(opened))
    monkeypatch.setattr(sessions[0], "context_length", 100)
    decisions = quick_config().decisions
    used = decisions.model_copy(update={"twin": TwinDecision(use=True, from_rows=12, reason="a test")})
    folder = ModelFolder(tmp_path, None)  # type: ignore[arg-type]
    events: list[Progress] = []
    found = measure_forms(folder, Costs(), used, progress=events.append)
    assert [point.tokens for point in found.forms] == [count for count in forms.TOKENS if count <= 100]
    assert events[-1].done == events[-1].total
    unused = used.model_copy(update={"twin": TwinDecision(use=False, from_rows=12, reason="no room")})
    assert measure_forms(folder, Costs(), unused) == measure_forms(folder, Costs(), decisions) == Costs()
