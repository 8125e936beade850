"""`aiasst inspect`."""

from __future__ import annotations

import typer

EXAMPLES = ""


def command() -> None:
    """Not written yet."""
    raise typer.Exit(2)


command.__name__ = "inspect"
