"""Headers that make browsers careful with what we answer. Knows no request but its path, scheme and host.

What the application sets itself is left as it is: a page with scripts of its own brings their hashes.

Source: OWASP HTTP Security Response Headers; Content Security Policy Level 3; RFC 6797 (HSTS).
"""

from __future__ import annotations

from aiasst.serve.guard import asgi
from aiasst.serve.guard.hosts import is_loopback, split

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self'; "
    "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""A page that has all it needs with it, and talks to its own service only."""
ALWAYS: asgi.Headers = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
STRICT_TRANSPORT_SECURITY = (b"strict-transport-security", b"max-age=31536000")
NOT_STORED = (b"cache-control", b"no-store")


def answer_headers(scope: asgi.Scope, *, static: bool) -> asgi.Headers:
    """What an answer to the request of `scope` has if it does not say otherwise; `static`: it is a file of the page."""
    added = list(ALWAYS)
    if not static:
        added.append(NOT_STORED)
    # For a name of this machine the browser would remember it for whatever else listens here without TLS.
    host = split(asgi.first(scope["headers"], b"host") or "")
    if scope.get("scheme") in ("https", "wss") and host and not is_loopback(host[0]):
        added.append(STRICT_TRANSPORT_SECURITY)
    return added


def completed(headers: asgi.Headers, added: asgi.Headers) -> asgi.Headers:
    """`headers` and those of `added` that are not among them; `Server` is dropped, since it helps attackers only."""
    kept = [(name.lower(), value) for name, value in headers if name.lower() != b"server"]
    present = {name for name, _ in kept}
    return [*kept, *((name, value) for name, value in added if name == b"vary" or name not in present)]
