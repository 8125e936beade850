"""Converted models, each made once a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from aiasst.artifacts.model_folder import ModelFolder
from aiasst.artifacts.shipped import story_checkpoint
from aiasst.convert import convert
from tests import checkpoints


@pytest.fixture(autouse=True)
def short_proofs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accuracy cards of a short text: what they say is tested elsewhere."""
    monkeypatch.setattr("aiasst.evaluate.decoders.DEFAULT_TOKENS", 1024)


@pytest.fixture(scope="session")
def story(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """The story checkpoint in float32."""
    return convert(story_checkpoint(), tmp_path_factory.mktemp("story") / "story")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ModelFolder]:
    """A tiny random model of an architecture, in float32."""
    made: dict[str, ModelFolder] = {}

    def get(name: str) -> ModelFolder:
        if name not in made:
            folder: Path = tmp_path_factory.mktemp(name)
            made[name] = convert(checkpoints.build(name, folder / "checkpoint"), folder / name)
        return made[name]

    return get
