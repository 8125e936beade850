"""Whether a picture could be drawn into a file, asked before the work begins. Knows no picture and loads no plotting."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from aiasst.errors import MissingExtraError, UsageError


def check_picture(file: Path) -> None:
    """Raises UsageError and MissingExtraError where no PNG could be drawn into `file`."""
    if file.suffix.lower() != ".png":
        raise UsageError(f"{file} is no PNG", "give a file name that ends in .png")
    if not file.resolve().parent.is_dir():
        raise UsageError(f"there is no folder {file.parent} for {file.name}", "make it, or choose another file")
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "convert")
