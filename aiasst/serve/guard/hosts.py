"""By which names the service is called, and which web pages call it. Knows no key: a browser is the confused deputy here.

A page of any origin can make the browser of its reader send requests to a service on that reader's machine. Two checks stop it:
the Host header must name this service, so that a foreign name that was made to point here (DNS rebinding) is refused; and an
Origin header must be that of the service itself or one that was allowed, so that forms, scripts and WebSockets of foreign pages
(cross-site request forgery, cross-site WebSocket hijacking) are refused before anything is computed. Programs send no Origin.

Source: RFC 9110 section 7.2 (Host), RFC 6454 (Origin).
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

from aiasst.serve.refusals import Refusal

HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252}[A-Za-z0-9_])?\.?)(?::([0-9]{1,5}))?")
DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


def is_loopback(host: str) -> bool:
    """Whether an address or name is of this machine alone: 127.0.0.0/8, ::1, localhost and names under it (RFC 6761)."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        parsed = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return parsed.is_loopback or bool(mapped and mapped.is_loopback)


def split(host: str) -> tuple[str, int | None] | None:
    """Name in lower case without brackets, and port, of a Host header; None where it is none."""
    match = HOST.fullmatch(host)
    if match is None:
        return None
    return match[1].strip("[]").rstrip(".").lower(), int(match[2]) if match[2] else None


class Hosts:
    """Which names are ours."""

    def __init__(self, bound: str, names: tuple[str, ...] = ()) -> None:
        """`bound`: the address that is listened at. `names`: others by which a proxy may call."""
        self._loopback = is_loopback(bound)
        self._names = {name.strip("[]").rstrip(".").lower() for name in (bound, *names)}
        # In a network the service has more names than it knows, and asks for keys; there only names that were given restrict.
        self._restricted = self._loopback or bool(names)

    def check(self, host: str | None) -> None:
        """Raise unless `host`, the value of the Host header, calls this service.

        Raises:
            Refusal: "forbidden", or "invalid" where it is no host.
        """
        parts = split(host) if host is not None else None
        if parts is None:
            raise Refusal("invalid", "the Host header is missing or is no host")
        name = parts[0]
        if not self._restricted or name in self._names or is_loopback(name):
            return
        hint = f"ask by the service's own address, or start it with  --server-name {name}"
        raise Refusal("forbidden", f"this service is not called '{name}'", hint)


class Origins:
    """Which web pages may ask."""

    def __init__(self, origins: tuple[str, ...] = ()) -> None:
        """`origins`: scheme://host[:port] of foreign pages that may."""
        self._allowed = {origin.rstrip("/").lower() for origin in origins}

    def __bool__(self) -> bool:
        return bool(self._allowed)

    def allows(self, origin: str) -> bool:
        """Whether a foreign page of this origin may ask."""
        return origin.lower() in self._allowed

    def check(self, origins: list[str], host: str | None) -> None:
        """Raise if a foreign page asks that may not.

        Args:
            origins: all values of the Origin header; browsers send it with whatever is more than following a link.
            host: the value of the Host header.

        Raises:
            Refusal: "forbidden"; "invalid".
        """
        if not origins:
            return
        if len(origins) > 1:
            raise Refusal("invalid", "more than one Origin header")
        if same(origins[0], host) or self.allows(origins[0]):
            return
        hint = "start the service with  --origin SCHEME://HOST:PORT  of the page if it may"
        raise Refusal("forbidden", "web pages of other origins may not ask this service", hint)


def same(origin: str, host: str | None) -> bool:
    """Whether a page of `origin` came from the service that is called `host`.

    The scheme is left out: one port speaks one, and a proxy that ends TLS makes them differ.
    """
    try:
        parts = urlsplit(origin)
        port = parts.port
    except ValueError:
        return False
    ours = split(host) if host is not None else None
    if ours is None or not parts.hostname or parts.path or parts.query or parts.fragment or "@" in parts.netloc:
        return False
    default = DEFAULT_PORTS.get(parts.scheme)
    return default is not None and (parts.hostname.rstrip("."), port or default) == (ours[0], ours[1] or default)
