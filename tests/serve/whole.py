"""The whole service as users start it: a process of its own with all protocols, and what it holds of the machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[2]
STORY = ROOT / "checkpoints" / "story-7m-int8"
PATIENCE = 180.0
"""Seconds after which a service that does not begin, or an answer that does not come, counts as hanging."""
KEY = "whole-service-key-0123456789"


@dataclass(frozen=True)
class Held:
    """What a process holds."""

    threads: int
    files: int
    """Open files and sockets."""
    memory: int
    """Bytes resident."""


@dataclass
class Whole:
    """A service that runs."""

    process: psutil.Process
    port: int
    grpc_port: int
    log: Path
    """Everything that it has written."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=PATIENCE, headers={"authorization": f"Bearer {KEY}"})

    def held(self) -> Held:
        return Held(self.process.num_threads(), self.process.num_fds(), self.process.memory_info().rss)

    def written(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")


@contextmanager
def whole(folder: Path, *arguments: str, models: tuple[str, ...] = (f"story={STORY}",)) -> Iterator[Whole]:
    """Serve on free ports as long as the block runs; it must end by SIGTERM, in order."""
    log = folder / "log"
    command = [sys.executable, "-m", "aiasst", "serve", *models, "--port", "0", "--grpc-port", "0", *arguments]
    environment = {**os.environ, "AIASST_API_KEY": KEY, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            port, grpc_port = _ports(process, log)
            yield Whole(psutil.Process(process.pid), port, grpc_port, log)
            process.terminate()
            assert process.wait(PATIENCE) == 0, log.read_text(errors="replace")
        finally:
            process.kill()
            process.wait()


def _ports(process: subprocess.Popen[bytes], log: Path) -> tuple[int, int]:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        text = " ".join(log.read_text(errors="replace").split())
        found = re.search(r"http://127\.0\.0\.1:(\d+)/v1.*gRPC 127\.0\.0\.1:(\d+)", text)
        if found is not None:
            return int(found[1]), int(found[2])
        assert process.poll() is None, text
        time.sleep(0.05)
    raise AssertionError(f"the service did not begin: {log.read_text(errors='replace')}")
