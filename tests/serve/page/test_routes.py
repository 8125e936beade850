from __future__ import annotations

import re
from importlib.resources import files

from fastapi import FastAPI
from fastapi.testclient import TestClient

from aiasst.serve import page

MOST_BYTES = 60_000


def client() -> TestClient:
    app = FastAPI()
    app.include_router(page.router())
    return TestClient(app)


def test_pages_and_their_parts_are_served_and_remembered() -> None:
    asked = client()
    for path in page.PAGES:
        answer = asked.get(path)
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
        for part in re.findall(r'(?:src|href)="(/page/[^"]+)"', answer.text):
            found = asked.get(part)
            assert found.status_code == 200
            again = asked.get(part, headers={"If-None-Match": f"W/{found.headers['etag']}"})
            assert (again.status_code, again.content) == (304, b"")


def test_nothing_else_is_served() -> None:
    asked = client()
    for path in (
        "/page/absent.js",
        "/page/..%2f__init__.py",
        "/page/%2e%2e/__init__.py",
        "/page/__init__.py",
        "/page/",
    ):
        assert asked.get(path).status_code == 404


def test_the_pages_are_small_and_need_nobody_else() -> None:
    static = files("aiasst.serve.page").joinpath("static")
    texts = {entry.name: entry.read_text("utf-8") for entry in static.iterdir()}
    assert sum(len(text.encode()) for text in texts.values()) < MOST_BYTES
    for name, text in texts.items():
        addresses = set(re.findall(r"https?://[^\s\"'`)]+", text)) - {"http://www.w3.org/2000/svg"}
        assert not {one for one in addresses if re.match(r"https?://[\w.-]+\.\w+", one)}, name
        assert "innerHTML" not in text and "style=" not in text
    for name in ("index.html", "dashboard.html"):
        assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|<style", texts[name])
