"""NVIDIA GPUs through CUDA."""

from __future__ import annotations

from aiasst.runtime.providers._loads import loads
from aiasst.runtime.settings import SessionSettings

NAME = "CUDAExecutionProvider"
PACKAGE = "onnxruntime-gpu"


def available() -> tuple[bool, str]:
    """(whether it loads here, why not)."""
    return loads(NAME, options(SessionSettings()), PACKAGE)


def options(settings: SessionSettings) -> dict[str, str]:
    """Memory grows by what is asked for, not by doubling: the ceiling counts it."""
    return {"arena_extend_strategy": "kSameAsRequested"}
