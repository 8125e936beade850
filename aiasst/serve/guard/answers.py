"""What an answer says of limits: a refusal in OpenAI's form of an error, and what is left of a rate. Knows no cause.

Source: OpenAI's API reference, errors: {"error": {"message", "type", "param", "code"}}; and rate limits: x-ratelimit-….
"""

from __future__ import annotations

import json
import math

from aiasst.serve.guard import asgi
from aiasst.serve.guard.rate import Standing
from aiasst.serve.refusals import Reason, Refusal

ERROR_TYPES: dict[Reason, str] = {
    "unauthorized": "authentication_error",
    "forbidden": "permission_error",
    "not_found": "not_found_error",
    "rate_limited": "rate_limit_error",
    "queue_full": "rate_limit_error",
    "overloaded": "rate_limit_error",
    "stopping": "server_error",
    "deadline": "server_error",
    "model_unavailable": "server_error",
}
"""All others are "invalid_request_error"."""


def error_body(refusal: Refusal) -> bytes:
    """The body of an answer that refuses."""
    message = f"{refusal.message}. {refusal.hint}" if refusal.hint else refusal.message
    error = {
        "message": message,
        "type": ERROR_TYPES.get(refusal.reason, "invalid_request_error"),
        "param": refusal.parameter,
        "code": refusal.reason,
    }
    return json.dumps({"error": error}, ensure_ascii=False).encode()


def error_headers(refusal: Refusal, body: bytes) -> asgi.Headers:
    """The headers that belong to it."""
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
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
