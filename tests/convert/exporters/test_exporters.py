"""Exporters are found by file name, asked in their order, and answer cheaply."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiasst.artifacts.model_folder import Source
from aiasst.convert import exporters
from aiasst.convert.exporters import mobius
from aiasst.convert.sources import Checkpoint
from aiasst.errors import ExportError, UsageError


def nothing(model_type: str) -> Checkpoint:
    """A checkpoint of which only the type is known: reading anything of it would fail."""
    return Checkpoint(Path("/nowhere"), {}, model_type, Source(kind="folder", name="x"))


def test_mobius_is_asked_first() -> None:
    found = exporters.names()
    assert found[:2] == ["mobius", "transformers"]
    for name in found:
        exporter = exporters.load(name)
        usable, reason = exporter.available()
        assert isinstance(usable, bool)
        assert reason
        assert callable(exporter.supports)
        assert callable(exporter.export)


def test_an_unknown_exporter_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError) as refused:
        exporters.load("os")
    assert "mobius" in refused.value.hint


@pytest.mark.parametrize(
    ("model_type", "task", "usable"),
    [
        ("llama", "text-generation", True),
        ("llama", "text-classification", False),
        ("bert", "feature-extraction", True),
        ("bert", "text-generation", False),
        ("roberta", "feature-extraction", False),
        ("nobody", "text-generation", False),
    ],
)
def test_mobius_says_what_it_knows_without_reading(model_type: str, task: str, usable: bool) -> None:
    answer, reason = mobius.supports(nothing(model_type), task)
    assert answer is usable
    assert model_type in reason


def test_a_failure_of_mobius_is_an_export_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ExportError, match="mobius could not export"):
        mobius.export(nothing("llama"), "text-generation")
    assert capfd.readouterr().out == ""
