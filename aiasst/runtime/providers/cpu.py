"""The CPU: always there; threads are the session's own setting."""

from __future__ import annotations

from aiasst.runtime.providers._loads import loads
from aiasst.runtime.settings import SessionSettings

NAME = "CPUExecutionProvider"
PACKAGE = "onnxruntime"


def available() -> tuple[bool, str]:
    """(whether it loads here, why not)."""
    return loads(NAME, options(SessionSettings()), PACKAGE)


def options(settings: SessionSettings) -> dict[str, str]:
    """None: threads and affinity belong to the session."""
    return {}
