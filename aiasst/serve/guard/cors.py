"""Cross-origin resource sharing: what a browser is told about pages that may ask. Off unless origins were given; knows no key.

Origins are exact, and no credentials are offered: the key is a header that the page itself sets, never a cookie.

Source: the Fetch standard, section 3.3 (CORS protocol); Private Network Access.
"""

from __future__ import annotations

import re

from aiasst.serve.guard import asgi
from aiasst.serve.guard.hosts import Origins

METHODS = b"GET, POST, DELETE, OPTIONS"
TOKENS = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~, -]{1,1024}")
MAX_AGE = b"600"
EXPOSED = (
    b"x-request-id, retry-after, x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests"
)


def is_preflight(method: str, headers: asgi.Headers) -> bool:
    """Whether a browser asks what a page may, before it asks for the page."""
    return (
        method == "OPTIONS"
        and asgi.first(headers, b"origin") is not None
        and asgi.first(headers, b"access-control-request-method") is not None
    )


def preflight(headers: asgi.Headers) -> asgi.Headers:
    """The answer's headers to a preflight of an origin that may ask, or of the service's own."""
    answer = [
        (b"access-control-allow-methods", METHODS),
        (b"access-control-max-age", MAX_AGE),
    ]
    wanted = asgi.first(headers, b"access-control-request-headers")
    if wanted and TOKENS.fullmatch(wanted):
        answer.append((b"access-control-allow-headers", wanted.encode("latin-1")))
    if asgi.first(headers, b"access-control-request-private-network") == "true":
        answer.append((b"access-control-allow-private-network", b"true"))
    return answer


def answer_headers(origins: Origins, headers: asgi.Headers) -> asgi.Headers:
    """What is added to every answer to a request with `headers`; nothing where no origins were given."""
    if not origins:
        return []
    origin = asgi.first(headers, b"origin")
    vary = [(b"vary", b"origin")]
    if origin is None or not origins.allows(origin):
        return vary
    return [
        *vary,
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-expose-headers", EXPOSED),
    ]
