"""Execution providers, one file each, found by its name. A module has:

NAME                   what ONNX Runtime calls it
PACKAGE                the pip package that brings it
available()            (whether it really loads here, why not)
options(settings)      its provider options
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Protocol, cast

from aiasst.errors import ResourceError
from aiasst.runtime.settings import SessionSettings


class ProviderModule(Protocol):
    """The names that a file of this folder has."""

    NAME: str
    PACKAGE: str

    def available(self) -> tuple[bool, str]:
        """(whether it loads here, the reason in words)."""

    def options(self, settings: SessionSettings) -> dict[str, str]:
        """Provider options for ONNX Runtime."""


def names() -> tuple[str, ...]:
    """Every provider that has a file, sorted."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")))


def load(name: str) -> ProviderModule:
    """The module of provider `name`.

    Raises:
        ResourceError: there is none of that name.
    """
    if name not in names():
        raise ResourceError(f"there is no execution provider '{name}'", f"known ones: {', '.join(names())}")
    return cast(ProviderModule, importlib.import_module(f"{__name__}.{name}"))
