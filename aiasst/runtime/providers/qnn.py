"""Qualcomm NPUs through QNN."""

from __future__ import annotations

from aiasst.runtime.providers._loads import loads
from aiasst.runtime.settings import SessionSettings

NAME = "QNNExecutionProvider"
PACKAGE = "onnxruntime-qnn"


def available() -> tuple[bool, str]:
    """(whether it loads here, why not)."""
    return loads(NAME, options(SessionSettings()), PACKAGE)


def options(settings: SessionSettings) -> dict[str, str]:
    """The Hexagon Tensor Processor, the NPU of the chip."""
    return {"backend_type": "htp"}
