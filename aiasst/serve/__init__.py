"""A model folder and a device config as a service: REST, WebSocket and gRPC over one continuously batching engine.

service.py    what every protocol asks of: requests in, pieces of answers out, models and their state (an interface)
refusals.py   why a request is not served, in the terms of every protocol
settings.py   what whoever starts the service decides
watch.py      what the service tells whoever counts (an interface)

hub.py        the models: loaded on first use, unloaded when memory is short; makes `service.Service` true
worker.py     one engine on a thread of its own, asked from the event loop
admission.py  how many may wait and run, and what is said to the others
rest/         OpenAI's REST as existing clients speak it
query.py      the compact form {"query", "context", "params"}; stream.py: WebSocket; rpc/: gRPC
guard/        keys, rate limits, sizes, slow clients, headers, TLS
metrics.py    what happened, counted (tallies.py), for Prometheus (exposition.py) and as live numbers (status.py); host.py: sensors
logs.py       a log that holds nobody up; request_log.py: one line a request; health.py: live and ready
forward.py    what would wait here goes to a peer
page/         the chat page and the dashboard
app.py        all of it as one application; server.py: on its sockets, until a signal
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from aiasst.artifacts.device import DeviceConfig, load_device_config
from aiasst.artifacts.model_folder import ModelFolder
from aiasst.errors import MissingExtraError
from aiasst.serve.settings import Limits, LogSettings, ServeSettings, Tls

if TYPE_CHECKING:
    from aiasst.serve.hub import Hub
    from aiasst.serve.rpc.server import RpcServer

__all__ = ["Limits", "LogSettings", "ServeSettings", "Tls", "serve"]

_PACKAGES = {"prometheus_client": "prometheus-client"}


def serve(
    models: str | Path | Sequence[str | Path],
    config: str | Path | DeviceConfig | None = None,
    *,
    settings: ServeSettings = ServeSettings(),  # noqa: B008 - frozen
    memory_bytes: int | None = None,
    speculate: bool = True,
    note: Callable[[str], None] = lambda text: None,
) -> None:
    """Serve model folders over HTTP until a signal (SIGTERM, SIGINT) ends it.

    >>> serve(["qwen3-int4", "minilm-w8a8"], "device.json", settings=ServeSettings(port=9000))

    Args:
        models: folders, each DIR or NAME=DIR; requests call a model by NAME, or by the name of its folder.
        config: a device config, which is obeyed as far as it is safe here; None: this machine is asked briefly.
        settings: where it listens, to whom, and how much it takes on.
        memory_bytes: what all models together may take; None: what the device config says.
        speculate: as in `aiasst.run.load`.
        note: told which device config is obeyed, what is unsafe, and where the service answers.

    Raises:
        ArtifactError: a folder or the config is missing or wrong.
        UsageError: two models have one name, or the settings are unsafe or make no sense.
        ResourceError: a port is taken.
        MissingExtraError: the extra `serve` is not installed.
    """
    try:
        from aiasst.serve.app import application
        from aiasst.serve.guard import Gate, check
        from aiasst.serve.guard.listening import server_config
        from aiasst.serve.logs import Logs
        from aiasst.serve.metrics import Metrics
        from aiasst.serve.request_log import LoggedWatch
        from aiasst.serve.server import Server, bound
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name in ("", "aiasst"):
            raise
        raise MissingExtraError(_PACKAGES.get(name, name), "serve") from None
    for warning in check(settings):
        note(warning)
    hub = _hub(models, config, settings.limits, memory_bytes, speculate=speculate)
    counted = Metrics(settings.keys, device=hub.machine)
    hub.watch = LoggedWatch(counted)
    gate = Gate(settings)
    with bound(settings) as listening, Logs(settings.logs, secrets=settings.keys.values()) as logs:
        counted.ask(hub.models, utilization=hub.utilization, lost_lines=lambda: logs.lost)
        for remark in hub.remarks:
            note(remark)

        async def start_calls() -> RpcServer | None:
            from aiasst.serve import app, rpc

            if settings.grpc_port is None:
                return None
            return await rpc.start(settings, app.service_of(hub, settings), gate.caller, hub.watch)

        def ready(grpc_port: int | None) -> None:
            note(_where(hub, settings, listening.getsockname()[1], grpc_port))

        wanted = server_config(application(hub, counted, settings, gate), settings)
        Server(wanted, hub, start_calls=start_calls, ready=ready).run(sockets=[listening])


def _hub(
    models: str | Path | Sequence[str | Path],
    config: str | Path | DeviceConfig | None,
    limits: Limits,
    memory_bytes: int | None,
    *,
    speculate: bool,
) -> Hub:
    from aiasst.serve.hub import Hub, Served

    given = [models] if isinstance(models, str | Path) else models
    device = config if config is None or isinstance(config, DeviceConfig) else load_device_config(Path(config))
    served = [Served(name, ModelFolder.open(folder)) for name, folder in map(_named, given)]
    return Hub(served, config=device, limits=limits, memory_bytes=memory_bytes, speculate=speculate)


def _named(model: str | Path) -> tuple[str, Path]:
    """What requests call a model, and its folder."""
    text = str(model)
    name, separator, folder = text.partition("=")
    if separator and name and folder and not {"/", "\\"} & set(name) and not Path(text).exists():
        return name, Path(folder)
    return Path(text).resolve().name, Path(text)


def _where(hub: Hub, settings: ServeSettings, port: int, grpc_port: int | None) -> str:
    """A line on what answers where."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"{'http' if settings.tls is None else 'https'}://{host}:{port}"
    said = f"{', '.join(model.name for model in hub.models())}: {url}/v1"
    said += f", chat page {url}/" if settings.page else ""
    return said if grpc_port is None else f"{said}, gRPC {host}:{grpc_port}"
