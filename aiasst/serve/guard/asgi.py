"""What the guard needs of ASGI: its types, and headers by name. Knows no server and no framework.

Source: the ASGI specification 3.0 (asgi.readthedocs.io), HTTP and WebSocket messages 2.4.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]


def values(headers: Headers, name: bytes) -> list[str]:
    """All values of the header `name` (lower case), as text in Latin-1."""
    return [value.decode("latin-1").strip() for key, value in headers if key.lower() == name]


def first(headers: Headers, name: bytes) -> str | None:
    """Its first value; None where it is missing."""
    return next(iter(values(headers, name)), None)


def address(scope: Scope) -> str:
    """Of the peer, as the server sees it; "" where it has none (a socket of Unix)."""
    client = scope.get("client")
    return str(client[0]) if client else ""
