"""An id for each request: the caller's own if it is fit for logs, else a new one. Knows nothing of what it identifies."""

from __future__ import annotations

import re
import uuid

FIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
HEADER = b"x-request-id"


def request_id(given: str | None) -> str:
    """`given` where it is up to 128 letters, digits and . _ - (so that it forges no line of a log); else a new one."""
    return given if given is not None and FIT.fullmatch(given) else f"req-{uuid.uuid4().hex}"
