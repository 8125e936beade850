"""How the server listens: uvicorn's configuration with everything of it that matters to safety. Decides nothing itself."""

from __future__ import annotations

import ssl

import uvicorn

from aiasst.serve.guard import asgi, tls
from aiasst.serve.guard.connections import protocols
from aiasst.serve.settings import ServeSettings

KEEP_ALIVE_SECONDS = 15


def server_config(app: asgi.App, settings: ServeSettings, *, last_seconds: int | None = None) -> uvicorn.Config:
    """The configuration under which `app` (a `Guard`) is served. Uvicorn configures no logs, and writes no log of accesses.

    `last_seconds`: for connections to end once the server stops; None: as long as they take.
    """
    http, websocket = protocols(settings.limits)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=http,
        ws=websocket,
        # The guard looks at heads first and says what is wrong; beyond twice its limit the parser ends the connection.
        h11_max_incomplete_event_size=2 * settings.limits.most_header_bytes,
        ws_max_size=settings.limits.most_body_bytes,
        # Compressed messages grow in memory, and compressing secrets with what others chose tells them (RFC 7457 section 2.6).
        ws_per_message_deflate=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        # Addresses are those of the peers: a header that anyone can send would give everyone a new one for each request.
        proxy_headers=False,
        server_header=False,
        log_config=None,
        access_log=False,
        lifespan="on",
        timeout_graceful_shutdown=last_seconds,
        ssl_certfile=None if settings.tls is None else settings.tls.certificate,
        ssl_keyfile=None if settings.tls is None else settings.tls.key,
        ssl_ciphers=tls.CIPHERS,
        ssl_version=ssl.PROTOCOL_TLS_SERVER,
    )
    config.load()
    if config.ssl is not None:
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    return config
