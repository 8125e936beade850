"""aiasst takes a checkpoint and a machine and gives back the fastest assistant this machine can run without getting dumber.

checkpoint ──convert──▶ model folder (ONNX fp32) ──quantize──▶ model folder (int2/4/8, w8a8, fp16) ─┐
                                                      ▲                                             ├─▶ run · chat
this machine ──profile──▶ device.json ────────────────┴─────────────────────────────────────────────┘

>>> from aiasst import QuantConfig, convert, load, profile, quantize
>>> folder = convert("path/to/checkpoint", "model")
>>> small = QuantConfig(weight_bits=4).apply(folder)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiasst.artifacts.model_folder import ModelFolder
    from aiasst.convert import convert
    from aiasst.profile import profile
    from aiasst.quantize import QuantConfig, quantize
    from aiasst.run import load

__version__ = "0.1.0"

__all__ = ["ModelFolder", "QuantConfig", "__version__", "convert", "load", "profile", "quantize"]

# Name → module; imported on first use, so that `import aiasst` and `aiasst --help` cost nothing.
_LAZY = {
    "ModelFolder": "aiasst.artifacts.model_folder",
    "QuantConfig": "aiasst.quantize",
    "convert": "aiasst.convert",
    "load": "aiasst.run",
    "profile": "aiasst.profile",
    "quantize": "aiasst.quantize",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'aiasst' has no attribute '{name}'")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
