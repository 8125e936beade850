"""The commands in pipeline order, and the program's one `except`. Knows no stage: each command's file imports its own."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from aiasst.cli import advise, bench, chat, convert, eval, inspect, output, profile, quantize, run, search, serve
from aiasst.errors import AiasstError
from aiasst.version import __version__

app = typer.Typer(
    name="aiasst",
    help=(
        "From a checkpoint to a fast private assistant on this machine.\n\n"
        "checkpoint → [bold]convert[/] → [bold]quantize[/] → [bold]run[/] / [bold]chat[/], by what "
        "[bold]profile[/] finds out about the machine."
    ),
    epilog="Start here:  aiasst chat",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (advise, convert, quantize, profile, run, chat, serve, search, eval, bench, inspect):
    app.command(epilog=module.EXAMPLES)(module.command)


def _show_version(value: bool) -> None:
    if value:
        output.data(f"aiasst {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options of the program itself."""


def main() -> None:
    """Run the command line; exit 0 done, 1 the user can fix it, 2 wrong usage, 3 a budget was refused, 130 interrupted.

    AIASST_DEBUG=1 shows the traceback of an error.
    """
    try:
        app()
    except AiasstError as error:
        if os.environ.get("AIASST_DEBUG"):
            raise
        output.error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        output.note("interrupted")
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our stdout went away (`aiasst ... | head`): not an error of ours; keep Python's exit from flushing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
