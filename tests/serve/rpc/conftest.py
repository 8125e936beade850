"""One event loop for all tests of gRPC: its threads wake the loop that they knew, also when that has been closed meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def run() -> Iterator[Callable[[Coroutine[Any, Any, object]], object]]:
    """Runs work to its end, which is not put off for ever."""

    async def bounded(work: Coroutine[Any, Any, object]) -> object:
        async with asyncio.timeout(60):
            return await work

    with asyncio.Runner() as runner:
        yield lambda work: runner.run(bounded(work))
