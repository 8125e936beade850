"""Apple GPUs and the Neural Engine through Core ML (part of the macOS package)."""

from __future__ import annotations

from aiasst.runtime.providers._loads import loads
from aiasst.runtime.settings import SessionSettings

NAME = "CoreMLExecutionProvider"
PACKAGE = "onnxruntime"


def available() -> tuple[bool, str]:
    """(whether it loads here, why not)."""
    return loads(NAME, options(SessionSettings()), PACKAGE)


def options(settings: SessionSettings) -> dict[str, str]:
    """The newer of the two formats of Core ML: the older one knows few operators."""
    return {"ModelFormat": "MLProgram"}
