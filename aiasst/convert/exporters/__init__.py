"""Exporters: a checkpoint becomes an ONNX graph. Each is a module of this folder, found by its file name.

An exporter has three names:

    available() -> tuple[bool, str]                             can it be used here, and why (not)
    supports(checkpoint, task) -> tuple[bool, str]              cheap: reads no weights
    export(checkpoint, task, progress=silent) -> ir.Model       float32; raises ExportError

A decoder comes out with one GroupQueryAttention a layer, in layer order, and a cache input and output for each; names
are free, the finish gives them.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Protocol, cast

from aiasst.errors import UsageError
from aiasst.progress import ProgressFn, silent

if TYPE_CHECKING:
    import onnx_ir as ir

    from aiasst.convert.sources import Checkpoint

PREFERRED = ("mobius", "transformers", "optimum")
"""Tried in this order; others after them by name."""


class Exporter(Protocol):
    """What a module of this folder must have."""

    def available(self) -> tuple[bool, str]:
        """Whether the exporter can be used here, and why (not)."""

    def supports(self, checkpoint: Checkpoint, task: str) -> tuple[bool, str]:
        """Whether it knows this model type and task, and why (not); reads no weights."""

    def export(self, checkpoint: Checkpoint, task: str, progress: ProgressFn = silent) -> ir.Model:
        """The checkpoint as a float32 graph. Raises ExportError."""


def names() -> list[str]:
    """Names of all exporters, in the order they are tried."""
    found = {module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")}
    return [name for name in PREFERRED if name in found] + sorted(found - set(PREFERRED))


def load(name: str) -> Exporter:
    """The exporter `name`. Raises UsageError where there is none of that name."""
    if name not in names():
        raise UsageError(f"there is no exporter '{name}'", f"choose one of: {', '.join(names())}")
    return cast(Exporter, importlib.import_module(f"{__name__}.{name}"))
