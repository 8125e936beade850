"""The pages `/` and `/dashboard`: files of this package, read once and served as they are. Knows no model; the pages ask for all.

static/  index.html and dashboard.html; chat.js, dashboard.js and the modules they import; style.css, theme.js, icon.svg.
No build chain, no other host: what stands there is what the browser gets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.resources import files

from fastapi import APIRouter, Request, Response

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
PAGES = {"/": "index.html", "/dashboard": "dashboard.html"}


@dataclass(frozen=True)
class _File:
    content: bytes
    media_type: str
    etag: str

    def answer(self, request: Request) -> Response:
        """The file, or that the browser has it already (RFC 9110, 13.1.2)."""
        headers = {"ETag": self.etag, "Cache-Control": "no-cache"}
        known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
        if self.etag in known or "*" in known:
            return Response(status_code=304, headers=headers)
        return Response(self.content, media_type=self.media_type, headers=headers)


def router() -> APIRouter:
    """`/`, `/dashboard` and `/page/NAME` for the files beside them; any other name is not found, wherever it points."""
    found = _read()
    routes = APIRouter(include_in_schema=False)

    @routes.get("/page/{name}")
    async def part(name: str, request: Request) -> Response:
        """One of the files that the pages are made of."""
        file = found.get(name)
        return Response(status_code=404) if file is None else file.answer(request)

    for path, name in PAGES.items():
        routes.add_api_route(path, _page(found[name]), methods=["GET"])
    return routes


def _page(file: _File) -> Callable[[Request], Awaitable[Response]]:
    async def page(request: Request) -> Response:
        return file.answer(request)

    return page


def _read() -> dict[str, _File]:
    found = {}
    for entry in files(__name__).joinpath("static").iterdir():
        suffix = "." + entry.name.rpartition(".")[2]
        if suffix in _TYPES:
            content = entry.read_bytes()
            found[entry.name] = _File(content, _TYPES[suffix], f'"{hashlib.sha256(content).hexdigest()[:20]}"')
    return found
