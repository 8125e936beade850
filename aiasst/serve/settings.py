"""What whoever starts the service decides. Knows no protocol and opens nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Limits:
    """How much is taken on; what is beyond it is refused with the number."""

    most_running: int = 64
    """Requests of one model under way at once; the engine's rows may be fewer, the rest waits in its line."""
    most_waiting: int = 256
    """Requests of one model in line behind these; the next is refused with 429."""
    most_body_bytes: int = 4 * 2**20
    """Of one request."""
    most_header_bytes: int = 32 * 2**10
    body_seconds: float = 30.0
    """A request whose body takes longer is ended, as is a connection that takes nothing of its answer for so long."""
    most_connections: int = 512
    requests_per_minute: float | None = None
    """Of one key (of one address where there are no keys); None: no limit."""
    deadline_seconds: float | None = None
    """Of requests that name none; None: none."""
    most_utilization: float = 0.85
    """Above it new work waits or goes to a peer."""
    idle_unload_seconds: float = 5.0
    """A model that was not asked for so long may be unloaded when another needs its memory; it is loaded again on demand."""
    stop_seconds: float = 30.0
    """Requests under way may go on so long once a stop was asked for; then they are told."""


@dataclass(frozen=True)
class Tls:
    """Files of a certificate in PEM."""

    certificate: Path
    key: Path


@dataclass(frozen=True)
class LogSettings:
    """Where the log goes and how it reads."""

    format: Literal["text", "json"] = "text"
    """Lines for people, or one JSON object a line."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """Requests are told at "info"."""
    file: Path | None = None
    """None: standard error, which systemd and containers keep and rotate."""
    most_bytes: int = 64 * 2**20
    """Of a file; then it is renamed to FILE.1 and a new one is begun."""
    kept: int = 5
    """Renamed files that are kept; 0: the file is only renamed away by others (logrotate)."""


@dataclass(frozen=True)
class ServeSettings:
    """Where the service listens, to whom, and how much it takes on."""

    host: str = "127.0.0.1"
    port: int = 8080
    grpc_port: int | None = None
    """None: no gRPC."""
    keys: dict[str, str] = field(default_factory=dict, repr=False)
    """Name → API key. None are needed on a loopback address only."""
    origins: tuple[str, ...] = ()
    """Web pages of other origins that may ask (CORS); none by default."""
    hosts: tuple[str, ...] = ()
    """Names by which the service may be called besides that of its address: those a proxy before it passes on."""
    tls: Tls | None = None
    peers: tuple[str, ...] = ()
    """URLs of other instances that take work which would be too much here."""
    page: bool = True
    open_metrics: bool = False
    """/metrics asks for no key although the rest does."""
    log_prompts: bool = False
    """Prompts and answers are in the log; nobody's are by default."""
    logs: LogSettings = LogSettings()
    limits: Limits = Limits()
