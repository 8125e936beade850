"""Whether an execution provider really loads: a session of one node is opened on it and run. Knows no provider in particular."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime as ort

from aiasst.errors import AiasstError
from aiasst.runtime.foreign import translated

_SILENT = 4
_FLOAT = 1


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
    """An ONNX model y = x + x over float32 [1], written by hand because the runtime installation has no `onnx` package."""
    node = _text(1, "x") + _text(1, "x") + _text(2, "y") + _text(4, "Add")
    graph = _field(1, node) + _text(2, "g") + _field(11, _value("x")) + _field(12, _value("y"))
    opset = _number(2, 17)
    return _number(1, 8) + _field(7, graph) + _field(8, opset)


# Protocol Buffers wire format: a key byte (field number << 3 | wire type), then a varint (0) or a length and bytes (2).
# Every number and length here is below 128, so that one byte holds it.
def _number(field: int, value: int) -> bytes:
    return bytes([field << 3, value])


def _field(field: int, payload: bytes) -> bytes:
    return bytes([field << 3 | 2, len(payload)]) + payload


def _text(field: int, value: str) -> bytes:
    return _field(field, value.encode())


def _value(name: str) -> bytes:
    shape = _field(1, _number(1, 1))
    tensor = _number(1, _FLOAT) + _field(2, shape)
    return _text(1, name) + _field(2, _field(1, tensor))
