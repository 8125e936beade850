"""Converted tiny checkpoints, each made once a run. AIASST_TEST_EXPORTER=transformers holds another exporter to the same tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from aiasst.artifacts.model_folder import ModelFolder
from aiasst.convert import convert
from tests import checkpoints

Converter = Callable[..., ModelFolder]
EXPORTER = os.environ.get("AIASST_TEST_EXPORTER", "mobius")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of the tiny checkpoint of an architecture."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = checkpoints.build(name, tmp_path_factory.mktemp("checkpoints") / name)
        return made[name]

    return get


@pytest.fixture(scope="session")
def converted(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Converter:
    """The model folder of an architecture, by an exporter."""
    made: dict[tuple[str, str], ModelFolder] = {}

    def get(name: str, exporter: str = EXPORTER) -> ModelFolder:
        if (name, exporter) not in made:
            output = tmp_path_factory.mktemp("converted") / f"{name}-{exporter}"
            made[name, exporter] = convert(checkpoint(name), output, exporter=exporter)
        return made[name, exporter]

    return get
