"""Which paths need no key, and which are no paths at all. Knows no other part of a request."""

from __future__ import annotations

import re

from aiasst.serve.refusals import Refusal

HEALTH = frozenset({"/health/live", "/health/ready"})
"""What orchestrators ask every few seconds: without a key, beyond every limit."""
METRICS = "/metrics"
PAGE = frozenset({"/", "/dashboard", "/favicon.ico"})
PAGE_FOLDER = "/page/"
"""The page's own files; what the page asks for needs a key like anything else."""
TRICKS = re.compile(r"(?:^|/)\.{1,2}(?:/|$)|//|\\|[\x00-\x1f\x7f]")
"""What a proxy and an application may read differently: dot segments, empty segments, backslashes, control characters."""


def check(path: str) -> None:
    """Raise unless `path`, already decoded, means the same to all who read it.

    Raises:
        Refusal: "invalid".
    """
    if not path.startswith("/") or TRICKS.search(path):
        raise Refusal(
            "invalid", "the path of the request is not a plain one", "leave out '..', '//' and control characters"
        )


def is_page(path: str) -> bool:
    """Whether it is a file of the page."""
    return path in PAGE or path.startswith(PAGE_FOLDER)
