"""Any DirectX 12 GPU on Windows, through DirectML."""

from __future__ import annotations

from aiasst.runtime.providers._loads import loads
from aiasst.runtime.settings import SessionSettings

NAME = "DmlExecutionProvider"
PACKAGE = "onnxruntime-directml"


def available() -> tuple[bool, str]:
    """(whether it loads here, why not)."""
    return loads(NAME, options(SessionSettings()), PACKAGE)


def options(settings: SessionSettings) -> dict[str, str]:
    """None needed."""
    return {}
