"""Bodies in JSON whose texts are whole: half a surrogate pair can be written in JSON, but neither be tokenized nor answered.

Knows no field.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class JsonRoute(APIRoute):
    """A route that refuses such bodies as no valid JSON (RFC 8259, section 8.2, calls their effect unpredictable)."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See FastAPI."""
        handle = super().get_route_handler()

        async def checked(request: Request) -> Response:
            return await handle(_Checked(request.scope, request.receive))

        return checked


class _Checked(Request):
    async def json(self) -> Any:
        document, body = await super().json(), await self.body()
        if _SURROGATE.search(body):
            try:
                json.dumps(document, ensure_ascii=False).encode("utf-8")
            except UnicodeEncodeError as error:
                raise json.JSONDecodeError("half a surrogate pair", error.object, error.start) from None
        return document
