"""`aiasst serve`: model folders as a service that existing clients speak."""

from __future__ import annotations

from typing import Annotated

import typer

from aiasst.cli import output
from aiasst.cli.options import Config, Quiet, Speculate

EXAMPLES = (
    "aiasst serve\n\n"
    "aiasst serve qwen3-int4 --config device.json\n\n"
    "aiasst serve chat=qwen3-int4 embed=minilm-w8a8 --port 9000 --memory 6GB\n\n"
    "aiasst serve qwen3-int4 --host 0.0.0.0 --api-key-file keys.txt --tls-cert cert.pem --tls-key key.pem\n\n"
    "curl http://127.0.0.1:8080/v1/completions -H 'Content-Type: application/json' "
    '-d \'{"model": "story-7m-int8", "prompt": "Once upon a time", "max_tokens": 60}\''
)

_LISTENS, _TAKES = "Where it listens, and to whom", "How much it takes on"


def command(
    folders: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DIR…]", help="Model folders, each DIR or NAME=DIR; without one, the small story model."
        ),
    ] = None,
    config: Config = None,
    host: Annotated[
        str, typer.Option("--host", help="Address; beyond this machine only with keys.", rich_help_panel=_LISTENS)
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="0: any that is free.", rich_help_panel=_LISTENS)
    ] = 8080,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            metavar="SIZE",
            help="All models together, as 6GB; else as the device config says.",
            rich_help_panel=_TAKES,
        ),
    ] = None,
    max_running: Annotated[
        int, typer.Option("--max-running", min=1, help="Requests of a model under way at once.", rich_help_panel=_TAKES)
    ] = 64,
    max_queue: Annotated[
        int, typer.Option("--max-queue", min=0, help="Requests in line behind them; then 429.", rich_help_panel=_TAKES)
    ] = 256,
    deadline: Annotated[
        float | None,
        typer.Option("--deadline", metavar="SECONDS", help="Of requests that name none.", rich_help_panel=_TAKES),
    ] = None,
    stop_seconds: Annotated[
        float,
        typer.Option("--stop-seconds", min=0, help="For answers under way when it is stopped.", rich_help_panel=_TAKES),
    ] = 30.0,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            "--peer",
            metavar="URL",
            help="Another instance, for what would wait here; may be repeated.",
            rich_help_panel=_TAKES,
        ),
    ] = None,
    speculate: Speculate = None,
    quiet: Quiet = False,
) -> None:
    """Serve models to clients of OpenAI's API: chat, completions, embeddings, responses.

    Models are loaded when they are first asked. Ctrl-C ends the service when
    the answers under way are complete; a second one ends it at once.
    """
    from aiasst.artifacts.shipped import default_model
    from aiasst.quantize.planning.budget import parse_bytes
    from aiasst.serve import Limits, ServeSettings, serve

    settings = ServeSettings(
        host=host,
        port=port,
        peers=tuple(peer or ()),
        limits=Limits(
            most_running=max_running, most_waiting=max_queue, deadline_seconds=deadline, stop_seconds=stop_seconds
        ),
    )
    serve(
        folders or [str(default_model())],
        config,
        settings=settings,
        memory_bytes=None if memory is None else parse_bytes(memory),
        speculate=speculate is not False,
        note=lambda text: None if quiet else output.note(f"[dim]{output.plain(text)}[/]"),
    )


command.__name__ = "serve"
