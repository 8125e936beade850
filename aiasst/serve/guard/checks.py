"""Settings that would be unsafe or cannot work are refused before anything listens. Knows no server."""

from __future__ import annotations

from urllib.parse import urlsplit

from aiasst.errors import UsageError
from aiasst.serve.guard import tls
from aiasst.serve.guard.hosts import is_loopback, split
from aiasst.serve.guard.keys import HINT as KEY_HINT
from aiasst.serve.guard.keys import KEY, LEAST_LENGTH, NAME
from aiasst.serve.settings import Limits, ServeSettings

POSITIVE = ("most_running", "most_body_bytes", "most_header_bytes", "body_seconds", "most_connections")
SCHEMES_OF_PAGES = ("http", "https", "chrome-extension", "moz-extension", "vscode-webview", "app", "tauri")


def check(settings: ServeSettings) -> tuple[str, ...]:
    """Warnings about settings that can be used.

    Raises:
        UsageError: they are unsafe, or make no sense.
    """
    _check_keys(settings)
    _check_names(settings)
    _check_limits(settings.limits)
    warnings = tls.check(settings.tls) if settings.tls is not None else ()
    if settings.tls is None and not is_loopback(settings.host):
        warnings += (
            f"without TLS, keys and prompts can be read on the way to {settings.host}; "
            "give a certificate, or put a proxy with TLS before the service",
        )
    return warnings


def _check_keys(settings: ServeSettings) -> None:
    network = not is_loopback(settings.host)
    if network and not settings.keys:
        message = f"{settings.host} can be reached from other machines, and no API keys were given"
        raise UsageError(message, f"set AIASST_API_KEY, or listen on 127.0.0.1; {KEY_HINT}")
    for name, key in settings.keys.items():
        if not NAME.fullmatch(name) or not KEY.fullmatch(key):
            hint = "a name has letters, digits, and . _ -; a key has letters, digits, and - . _ ~ + / ="
            raise UsageError(f"the API key '{name}' is none", hint)
        if network and len(key) < LEAST_LENGTH:
            message = f"the API key '{name}' has {len(key)} characters; {LEAST_LENGTH} are the least in a network"
            raise UsageError(message, KEY_HINT)


def _check_names(settings: ServeSettings) -> None:
    for host in settings.hosts:
        parts = split(host)
        if parts is None or parts[1] is not None:
            raise UsageError(f"'{host}' is no name of a host", "give the name alone, as in  assistant.example.org")
    for origin in settings.origins:
        parts_of_url = urlsplit(origin)
        if parts_of_url.scheme not in SCHEMES_OF_PAGES or not parts_of_url.netloc or parts_of_url.path not in ("", "/"):
            hint = "give each exactly, as in  https://assistant.example.org  or  http://localhost:3000"
            raise UsageError(f"'{origin}' is not the origin of a web page", hint)


def _check_limits(limits: Limits) -> None:
    for name in POSITIVE:
        if getattr(limits, name) <= 0:
            raise UsageError(f"{name} is {getattr(limits, name)}", "give a number larger than 0")
    if limits.requests_per_minute is not None and not limits.requests_per_minute > 0:
        raise UsageError(
            f"requests_per_minute is {limits.requests_per_minute:g}", "give a number larger than 0, or none"
        )
