"""Option types that several commands share, each defined once. Knows no command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no notes; errors still show.")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A model folder, written by convert or quantize.")]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Device config, written by profile. Without one, this machine is asked briefly.",
    ),
]
