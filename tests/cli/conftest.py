"""The shipped story model, where this checkout has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiasst.artifacts.shipped import default_model
from aiasst.errors import ArtifactError


@pytest.fixture(scope="session")
def story() -> Path:
    try:
        return default_model()
    except ArtifactError as absent:
        pytest.skip(absent.message)
