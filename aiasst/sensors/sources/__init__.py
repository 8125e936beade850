"""Where sensors come from, one file a source, found by its name; each has `find(place)`, which never raises.

A source gives the sensors that can be read now, and says of those that cannot (or of itself) why not.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Protocol, cast

from aiasst.sensors.reading import Found, Place


class Source(Protocol):
    """The name that a file of this folder has."""

    def find(self, place: Place) -> Found:
        """The sensors of this source, and what is missing."""


def names() -> tuple[str, ...]:
    """The sources, sorted."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def find_in(place: Place) -> Found:
    """What all of them find."""
    found = Found()
    for name in names():
        found += cast(Source, importlib.import_module(f"{__name__}.{name}")).find(place)
    return found
