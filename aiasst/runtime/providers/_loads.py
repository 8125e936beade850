"""Whether an execution provider really loads: a session of one node is opened on it and run. Knows no provider in particular."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime as ort

from aiasst.errors import AiasstError
from aiasst.runtime.foreign import translated
from aiasst.runtime.onnx_writer import Node, Value, model_bytes

_SILENT = 4


def loads(name: str, options: Mapping[str, str], package: str) -> tuple[bool, str]:
    """(True, "loads") or (False, why): ONNX Runtime may list a provider whose libraries or device are missing."""
    if name not in ort.get_available_providers():
        return False, f"this onnxruntime has no {name} (it comes with the package {package})"
    settings = ort.SessionOptions()
    settings.log_severity_level = _SILENT
    try:
        with translated(f"a test graph on {name}"):
            session = ort.InferenceSession(tiny_graph(), settings, providers=[(name, dict(options))])
            if session.get_providers()[0] != name:
                return False, f"{name} is installed, but its libraries or its device are missing"
            session.run(None, {"x": np.ones((1,), np.float32)})
    except AiasstError as error:
        return False, error.message
    return True, "loads"


def tiny_graph() -> bytes:
    """An ONNX model y = x + x over float32 [1]."""
    ends = [Value(name, np.float32, [1]) for name in ("x", "y")]
    return model_bytes([Node("Add", ["x", "x"], ["y"])], ends[:1], ends[1:], {}, {"": 17})
