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
metrics.py    figures for Prometheus; logs.py: structured logs; health.py: live and ready
page/         the chat page and the dashboard
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from aiasst.artifacts.device import DeviceConfig, load_device_config
from aiasst.artifacts.model_folder import ModelFolder
from aiasst.errors import MissingExtraError
from aiasst.serve.settings import Limits, ServeSettings, Tls

__all__ = ["Limits", "ServeSettings", "Tls", "serve"]


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
        note: told which device config is obeyed, and where the service answers.

    Raises:
        ArtifactError: a folder or the config is missing or wrong.
        UsageError: two models have one name, or the settings make no sense.
        ResourceError: the port is taken.
        MissingExtraError: the extra `serve` is not installed.
    """
    try:
        import fastapi  # noqa: F401 - only whether it is there
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(error.name or "fastapi", "serve") from None
    from aiasst.serve.app import application
    from aiasst.serve.hub import Hub, Served
    from aiasst.serve.server import bound, run

    given = [models] if isinstance(models, str | Path) else models
    device = config if config is None or isinstance(config, DeviceConfig) else load_device_config(Path(config))
    hub = Hub(
        [Served(name, ModelFolder.open(folder)) for name, folder in map(_named, given)],
        config=device,
        limits=settings.limits,
        memory_bytes=memory_bytes,
        speculate=speculate,
    )
    listening = bound(settings)
    for remark in hub.remarks:
        note(remark)
    names = ", ".join(model.name for model in hub.models())
    url = _url(settings, listening.getsockname()[1])
    run(application(hub, settings), hub, settings, listening, ready=lambda: note(f"{names}: {url}/v1"))


def _named(model: str | Path) -> tuple[str, Path]:
    """What requests call a model, and its folder."""
    text = str(model)
    name, separator, folder = text.partition("=")
    if separator and name and folder and not {"/", "\\"} & set(name) and not Path(text).exists():
        return name, Path(folder)
    return Path(text).resolve().name, Path(text)


def _url(settings: ServeSettings, port: int) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{'http' if settings.tls is None else 'https'}://{host}:{port}"
