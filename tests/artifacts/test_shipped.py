"""What ships with the program is there, whole, and not older than the program."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiasst.artifacts import shipped
from aiasst.artifacts.model_folder import WEIGHTS_NAME, ModelFolder, sha256_of
from aiasst.errors import ArtifactError


def test_the_story_model_is_whole() -> None:
    model = ModelFolder.open(shipped.default_model())
    model.check_hashes()
    assert model.manifest.tokens.eos


def test_the_story_model_is_what_the_program_makes_of_its_checkpoint(tmp_path: Path) -> None:
    """Fails when conversion or int8 changed: then `make story` builds the folder anew."""
    from aiasst import convert, quantize

    made = quantize(convert(shipped.story_checkpoint(), tmp_path / "story"), tmp_path / "int8", recipe="int8")
    old = ModelFolder.open(shipped.default_model())
    assert sha256_of(made.path / WEIGHTS_NAME) == old.manifest.files[WEIGHTS_NAME].sha256
    assert made.manifest.weights == old.manifest.weights


def test_an_installation_without_its_data_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shipped, "data_folder", lambda name: tmp_path / name)
    with pytest.raises(ArtifactError, match="lacks the folder"):
        shipped.default_model()
