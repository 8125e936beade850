"""What an answer says of limits: a refusal in OpenAI's form of an error, and what is left of a rate. Knows no cause.

Source: OpenAI's API reference, errors: {"error": {"message", "type", "param", "code"}}; and rate limits: x-ratelimit-….
"""

from __future__ import annotations

import json
import math
from typing import Any

from aiasst.serve.guard import asgi
from aiasst.serve.guard.rate import Standing
from aiasst.serve.refusals import Refusal

ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    503: "server_error",
    504: "server_error",
}
"""By status; all others are "invalid_request_error"."""
ERROR_CODES: dict[str, str] = {"too_long": "context_length_exceeded", "unauthorized": "invalid_api_key"}
"""Where OpenAI has a word of its own; else the reason itself is the code."""


def error_document(refusal: Refusal) -> dict[str, Any]:
    """What an answer that refuses says."""
    code = ERROR_CODES.get(refusal.reason, refusal.reason)
    if refusal.reason == "not_found" and refusal.parameter == "model":
        code = "model_not_found"
    words = f"{refusal.message}; {refusal.hint}" if refusal.hint else refusal.message
    kind = ERROR_TYPES.get(refusal.status, "invalid_request_error")
    return {"error": {"message": words, "type": kind, "param": refusal.parameter, "code": code}}


def error_body(refusal: Refusal) -> bytes:
    """Its body."""
    return json.dumps(error_document(refusal), ensure_ascii=False).encode()


def error_headers(refusal: Refusal, body: bytes) -> asgi.Headers:
    """The headers that belong to it."""
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
    ]
    if refusal.retry_after is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(refusal.retry_after))))
    if refusal.reason == "unauthorized":
        headers.append((b"www-authenticate", b'Bearer realm="aiasst"'))
    return headers


def rate_headers(standing: Standing) -> asgi.Headers:
    """What is left of the caller's rate."""
    return [
        (b"x-ratelimit-limit-requests", b"%d" % standing.limit),
        (b"x-ratelimit-remaining-requests", b"%d" % standing.remaining),
        (b"x-ratelimit-reset-requests", b"%.3fs" % standing.reset),
    ]
