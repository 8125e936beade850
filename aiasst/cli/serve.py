"""`aiasst serve`: model folders as a service that existing clients speak."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from aiasst.cli import output
from aiasst.cli.options import Config, Quiet, Speculate
from aiasst.errors import UsageError

if TYPE_CHECKING:
    from aiasst.serve import Tls

EXAMPLES = (
    "aiasst serve\n\n"
    "aiasst serve qwen3-int4 --config device.json\n\n"
    "aiasst serve chat=qwen3-int4 embed=minilm-w8a8 --port 9000 --memory 6GB\n\n"
    "aiasst serve qwen3-int4 --host 0.0.0.0 --api-key-file keys.txt --tls-cert cert.pem --tls-key key.pem\n\n"
    "curl http://127.0.0.1:8080/v1/completions -H 'Content-Type: application/json' "
    '-d \'{"model": "story-7m-int8", "prompt": "Once upon a time", "max_tokens": 60}\''
)

_LISTENS, _TAKES, _LOG = "Where it listens, and to whom", "How much it takes on", "Log"


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
    grpc_port: Annotated[
        int | None,
        typer.Option("--grpc-port", min=0, max=65535, help="Serve gRPC too.", rich_help_panel=_LISTENS),
    ] = None,
    api_key_file: Annotated[
        list[Path] | None,
        typer.Option(
            "--api-key-file",
            metavar="FILE",
            help="Keys, one a line, as NAME: KEY; also taken from AIASST_API_KEY.",
            rich_help_panel=_LISTENS,
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option("--tls-cert", metavar="FILE", help="Certificate in PEM.", rich_help_panel=_LISTENS)
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option("--tls-key", metavar="FILE", help="Its key in PEM.", rich_help_panel=_LISTENS)
    ] = None,
    server_name: Annotated[
        list[str] | None,
        typer.Option(
            "--server-name",
            metavar="NAME",
            help="A name by which requests may call the service, of a proxy before it; may be repeated.",
            rich_help_panel=_LISTENS,
        ),
    ] = None,
    origin: Annotated[
        list[str] | None,
        typer.Option(
            "--origin", metavar="URL", help="A web page that may ask; may be repeated.", rich_help_panel=_LISTENS
        ),
    ] = None,
    page: Annotated[
        bool, typer.Option("--page/--no-page", help="The chat page and the dashboard.", rich_help_panel=_LISTENS)
    ] = True,
    open_metrics: Annotated[
        bool, typer.Option("--open-metrics", help="/metrics asks for no key.", rich_help_panel=_LISTENS)
    ] = False,
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
    rate: Annotated[
        float | None,
        typer.Option("--rate", metavar="N", help="Requests a minute of one key, at most.", rich_help_panel=_TAKES),
    ] = None,
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
    log_format: Annotated[
        Literal["text", "json"],
        typer.Option("--log-format", help="Lines for people or machines.", rich_help_panel=_LOG),
    ] = "text",
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        typer.Option("--log-level", help="Requests are told at info.", rich_help_panel=_LOG),
    ] = "info",
    log_file: Annotated[
        Path | None,
        typer.Option("--log-file", metavar="FILE", help="Instead of stderr; rotated.", rich_help_panel=_LOG),
    ] = None,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Prompts and answers too; never by default.", rich_help_panel=_LOG)
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Serve models to clients of OpenAI's API, and over WebSocket and gRPC.

    Models are loaded when they are first asked. Ctrl-C ends the service when
    the answers under way are complete; a second one ends it at once.
    """
    from aiasst.artifacts.shipped import default_model
    from aiasst.quantize.planning.budget import parse_bytes
    from aiasst.serve import Limits, LogSettings, ServeSettings, serve

    def note(text: str) -> None:
        if not quiet:
            output.note(f"[dim]{output.plain(text)}[/]")

    settings = ServeSettings(
        host=host,
        port=port,
        grpc_port=grpc_port,
        keys=_keys(api_key_file or [], note=output.note),
        origins=tuple(origin or ()),
        hosts=tuple(server_name or ()),
        tls=_tls(tls_cert, tls_key),
        peers=tuple(peer or ()),
        page=page,
        open_metrics=open_metrics,
        log_prompts=log_prompts,
        logs=LogSettings(format=log_format, level=log_level, file=log_file),
        limits=Limits(
            most_running=max_running,
            most_waiting=max_queue,
            requests_per_minute=rate,
            deadline_seconds=deadline,
            stop_seconds=stop_seconds,
        ),
    )
    serve(
        folders or [str(default_model())],
        config,
        settings=settings,
        memory_bytes=None if memory is None else parse_bytes(memory),
        speculate=speculate is not False,
        note=note,
    )


command.__name__ = "serve"


def _keys(files: list[Path], *, note: Callable[[str], None]) -> dict[str, str]:
    """Name → key of all files and of the environment."""
    from aiasst.serve.guard import keys

    sources = [keys.read_environment(os.environ)]
    for file in files:
        found, warnings = keys.read_file(file)
        sources.append(found)
        for warning in warnings:
            note(output.plain(warning))
    return keys.merged(*sources)


def _tls(certificate: Path | None, key: Path | None) -> Tls | None:
    from aiasst.serve import Tls

    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise UsageError("--tls-cert and --tls-key belong together", "give both")
    return Tls(certificate, key)
