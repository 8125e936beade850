"""Why a request is not served, in the terms of every protocol. Knows no protocol's library and no engine."""

from __future__ import annotations

from typing import Literal

from aiasst.errors import AiasstError

Reason = Literal[
    "invalid",
    "unauthorized",
    "forbidden",
    "not_found",
    "too_large",
    "too_long",
    "too_slow",
    "headers_too_large",
    "rate_limited",
    "queue_full",
    "overloaded",
    "stopping",
    "deadline",
    "unsupported",
    "model_unavailable",
]
"""Stable words: they are labels of a metric and codes of errors."""

HTTP_STATUS: dict[Reason, int] = {
    "invalid": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "too_large": 413,
    "too_long": 413,
    "too_slow": 408,
    "headers_too_large": 431,
    "rate_limited": 429,
    "queue_full": 429,
    "overloaded": 429,
    "stopping": 503,
    "deadline": 504,
    "unsupported": 400,
    "model_unavailable": 503,
}
"""RFC 9110; 429 with Retry-After and 431 are RFC 6585."""

GRPC_CODE: dict[Reason, str] = {
    "invalid": "INVALID_ARGUMENT",
    "unauthorized": "UNAUTHENTICATED",
    "forbidden": "PERMISSION_DENIED",
    "not_found": "NOT_FOUND",
    "too_large": "RESOURCE_EXHAUSTED",
    "too_long": "INVALID_ARGUMENT",
    "too_slow": "DEADLINE_EXCEEDED",
    "headers_too_large": "RESOURCE_EXHAUSTED",
    "rate_limited": "RESOURCE_EXHAUSTED",
    "queue_full": "RESOURCE_EXHAUSTED",
    "overloaded": "RESOURCE_EXHAUSTED",
    "stopping": "UNAVAILABLE",
    "deadline": "DEADLINE_EXCEEDED",
    "unsupported": "INVALID_ARGUMENT",
    "model_unavailable": "UNAVAILABLE",
}
"""Names of grpc.StatusCode."""


class Refusal(AiasstError):  # noqa: N818 - the name says what happened to the request
    """One request that is not served; the service goes on."""

    def __init__(
        self,
        reason: Reason,
        message: str,
        hint: str = "",
        *,
        retry_after: float | None = None,
        parameter: str | None = None,
    ) -> None:
        """`retry_after`: seconds after which it may be tried again. `parameter`: the field of the request that is wrong."""
        super().__init__(message, hint)
        self.reason = reason
        self.retry_after = retry_after
        self.parameter = parameter

    @property
    def status(self) -> int:
        """Its HTTP status."""
        return HTTP_STATUS[self.reason]
