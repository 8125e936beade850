"""Plays the hub on 127.0.0.1: the calls that huggingface_hub makes for a snapshot, range requests, and broken connections."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OLD_COMMIT = "fedcba9876543210fedcba9876543210fedcba98"


@dataclass
class Hub:
    """What is served, how it misbehaves, and what it was asked."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    repository: str = "org/tiny"
    branches: dict[str, str] = field(default_factory=lambda: {"main": COMMIT, "v1": OLD_COMMIT})
    cuts: dict[str, int] = field(default_factory=dict)
    """File → how many of the next transfers are cut in the middle."""
    resets: dict[str, int] = field(default_factory=dict)
    """The same, but the connection is reset (RST) instead of closed."""
    gated: bool = False
    status: int = 0
    """Answer everything with this status."""
    asked: list[str] = field(default_factory=list)
    """METHOD path [range] of every request."""

    def fetched(self) -> set[str]:
        """Names of the files that were transferred."""
        return {
            line.split(" ")[1].split("/", 5)[-1] for line in self.asked if line.startswith("GET /org/tiny/resolve/")
        }


@contextmanager
def serve(folder: Path) -> Iterator[Hub]:
    """Serve the files of `folder` as org/tiny until the block ends."""
    hub = Hub(files={p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()})
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: ClassVar[Hub]
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        hub, path = self.hub, urllib.parse.unquote(self.path.partition("?")[0])
        hub.asked.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
        if hub.status:
            self._refuse(hub.status, "")
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._info(found[1], found[2] or "main")
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            self._tree(found[1], found[2])
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(found[1], found[2], found[3], body=body)
        else:
            self._refuse(404, "EntryNotFound")

    def _known(self, repository: str, revision: str) -> str | None:
        """The commit; None where the request was answered with a refusal."""
        if repository != self.hub.repository:
            self._refuse(401, "RepoNotFound")
            return None
        commit = self.hub.branches.get(revision, revision)
        if commit not in self.hub.branches.values():
            self._refuse(404, "RevisionNotFound")
            return None
        return commit

    def _info(self, repository: str, revision: str) -> None:
        if commit := self._known(repository, revision):
            siblings = [{"rfilename": name} for name in self.hub.files]
            self._json(
                {"id": repository, "sha": commit, "siblings": siblings, "private": False, "downloads": 0, "tags": []}
            )

    def _tree(self, repository: str, revision: str) -> None:
        if self._known(repository, revision):
            rows = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in self.hub.files.items()
            ]
            self._json(rows)

    def _file(self, repository: str, revision: str, name: str, *, body: bool) -> None:
        commit = self._known(repository, revision)
        if commit is None:
            return
        if self.hub.gated:
            self._refuse(403, "GatedRepo", commit)
        elif name not in self.hub.files:
            self._refuse(404, "EntryNotFound", commit)
        else:
            self._send(self.hub.files[name], name, commit, body=body)

    def _send(self, data: bytes, name: str, commit: str, *, body: bool) -> None:
        start = int((self.headers.get("Range") or "bytes=0-")[len("bytes=") :].split("-")[0])
        part = data[start:]
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if not body:
            return
        if self.hub.cuts.get(name, 0) > 0 or self.hub.resets.get(name, 0) > 0:
            self._break_off(part, name)
        else:
            self.wfile.write(part)

    def _break_off(self, part: bytes, name: str) -> None:
        self.close_connection = True
        reset = self.hub.resets.get(name, 0) > 0
        broken = self.hub.resets if reset else self.hub.cuts
        broken[name] -= 1
        self.wfile.write(part[: len(part) // 2])
        self.wfile.flush()
        if reset:
            # Closing with linger 0 sends RST instead of FIN.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: int, code: str, commit: str = "") -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        if commit:
            self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", "0")
        self.end_headers()
