"""aiasst takes a checkpoint and a machine and gives back the fastest assistant this machine can run without getting dumber.

checkpoint ──convert──▶ model folder (ONNX fp32) ──quantize──▶ model folder (int2/4/8, w8a8, fp16) ─┐
                                                      ▲                                             ├─▶ run · chat · serve
this machine ──profile──▶ device.json ────────────────┴─────────────────────────────────────────────┘

>>> from aiasst import QuantConfig, convert, load, profile, quantize
>>> folder = convert("path/to/checkpoint", "model")
>>> small = QuantConfig(weight_bits=4).apply(folder)
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from aiasst.version import __version__

if TYPE_CHECKING:
    from aiasst.artifacts.model_folder import ModelFolder
    from aiasst.pipeline import convert
    from aiasst.profile import profile
    from aiasst.quantize import QuantConfig, quantize
    from aiasst.run import load
    from aiasst.serve import serve

__all__ = ["ModelFolder", "QuantConfig", "__version__", "convert", "load", "profile", "quantize", "serve"]

# Name → module; imported on first use, so that `import aiasst` and `aiasst --help` cost nothing.
_LAZY = {
    "ModelFolder": "aiasst.artifacts.model_folder",
    "QuantConfig": "aiasst.quantize",
    "convert": "aiasst.pipeline",
    "load": "aiasst.run",
    "profile": "aiasst.profile",
    "quantize": "aiasst.quantize",
    "serve": "aiasst.serve",
}


_STAGES = frozenset({"convert", "profile", "quantize", "serve"})


class _Stage(ModuleType):
    """The module of a stage, callable like the public function that bears its name."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return __getattr__(self.__name__.rpartition(".")[2])(*arguments, **options)


class _Package(ModuleType):
    """This package. Python binds an imported submodule over the function of its name; then the submodule must do for it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _STAGES and isinstance(value, ModuleType):
            value.__class__ = _Stage
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'aiasst' has no attribute '{name}'")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
