"""Intel CPUs, GPUs and NPUs through OpenVINO."""

from __future__ import annotations

from aiasst.runtime.providers._loads import loads
from aiasst.runtime.settings import SessionSettings

NAME = "OpenVINOExecutionProvider"
PACKAGE = "onnxruntime-openvino"


def available() -> tuple[bool, str]:
    """(whether it loads here, why not)."""
    return loads(NAME, options(SessionSettings()), PACKAGE)


def options(settings: SessionSettings) -> dict[str, str]:
    """OpenVINO picks the device."""
    return {"device_type": "AUTO"}
