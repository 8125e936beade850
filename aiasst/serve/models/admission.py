"""The line before a model: how many requests are under way, how many wait, and what the others are told. Knows no engine.

A request begins when fewer than `most_running` are under way, and the machine is not busier than it may be. What other programs do
never stops a service that has nothing to do: while nothing is under way the first in line begins whatever the utilization is, so
that work goes on one by one at worst. Whose turn it is follows the engine's law: who came first, a level of priority counting as
`AGING` seconds of waiting.
"""

from __future__ import annotations

import asyncio
import math
import time
from bisect import insort
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiasst.engine.scheduler import AGING
from aiasst.serve.refusals import Refusal
from aiasst.serve.settings import Limits

_SMOOTHING = 0.1
"""Weight of the newest request in the mean of how long they take."""
_USUAL_SECONDS = 5.0
"""What a request is taken to need before any was measured."""
MOST_RETRY_SECONDS = 600.0


@dataclass(order=True)
class _Waiting:
    """A request in line; sorts by whose turn it is."""

    rank: float
    number: int
    turn: asyncio.Future[None] = field(compare=False)


class Line:
    """Of one model. All methods are called on one event loop."""

    def __init__(
        self,
        limits: Limits,
        *,
        crowded: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`crowded` tells whether the machine is busier than it may be; `clock` gives seconds."""
        self._limits = limits
        self._crowded = crowded
        self._clock = clock
        self._line: list[_Waiting] = []
        self._came = 0
        self._seconds: float | None = None
        self.running = 0
        """Requests under way."""

    @property
    def waiting(self) -> int:
        """Requests in line."""
        return len(self._line)

    @property
    def full(self) -> bool:
        """Whether the next request would be refused."""
        return len(self._line) >= self._limits.most_waiting and not self._may_begin()

    @property
    def would_wait(self) -> bool:
        """Whether the next request would stand in line."""
        return bool(self._line) or not self._may_begin()

    def retry_after(self) -> float:
        """Seconds after which a request that comes now would begin, by how long requests took and how many are before it.

        By Little's law: as many leave in a second as are under way, divided by the seconds that each takes.
        """
        seconds = _USUAL_SECONDS if self._seconds is None else self._seconds
        expected = (len(self._line) + 1) * seconds / max(1, self.running)
        return float(min(MOST_RETRY_SECONDS, max(1, math.ceil(expected))))

    @asynccontextmanager
    async def turn(self, *, priority: int = 0, patience: float | None = None) -> AsyncIterator[None]:
        """Wait until it is the request's turn, and hold its place as long as the block runs.

        Args:
            priority: from -10 to 10, higher first.
            patience: seconds that it waits at most; None: as long as it takes.

        Raises:
            Refusal: "queue_full" at once, or "deadline" when its patience has ended.
        """
        await self._wait(priority, patience)
        began = self._clock()
        try:
            yield
        finally:
            self.running -= 1
            self._took(self._clock() - began)
            self.look_again()

    def look_again(self) -> None:
        """Let those begin that may; to be called when the machine may have become less busy."""
        while self._line and self._may_begin():
            turn = self._line.pop(0).turn
            if not turn.done():  # else whoever waited has just gone
                self.running += 1
                turn.set_result(None)

    async def _wait(self, priority: int, patience: float | None) -> None:
        if not self.would_wait:
            self.running += 1
            return
        if len(self._line) >= self._limits.most_waiting:
            raise self._refusal()
        self._came += 1
        turn = asyncio.get_running_loop().create_future()
        entry = _Waiting(self._clock() - AGING * priority, self._came, turn)
        insort(self._line, entry)
        begun = False
        try:
            async with asyncio.timeout(patience):
                await turn
            begun = True
        except TimeoutError:
            raise Refusal(
                "deadline",
                f"the request waited {patience:g} seconds in line, as long as it may take",
                "allow it more time, or ask again when there is less to do",
                retry_after=self.retry_after(),
            ) from None
        finally:
            if not begun:
                self._withdraw(entry)

    def _withdraw(self, entry: _Waiting) -> None:
        """It waits no more; where its turn had come just then, the next one gets it."""
        if entry in self._line:
            self._line.remove(entry)
        elif not entry.turn.cancelled():
            self.running -= 1
            self.look_again()

    def _may_begin(self) -> bool:
        if self.running >= self._limits.most_running:
            return False
        return self.running == 0 or not self._crowded()

    def _took(self, seconds: float) -> None:
        before = seconds if self._seconds is None else self._seconds
        self._seconds = before + _SMOOTHING * (seconds - before)

    def _refusal(self) -> Refusal:
        seconds = self.retry_after()
        return Refusal(
            "queue_full",
            f"{self.running} requests are under way and {len(self._line)} wait, which is as many as may",
            f"ask again in about {seconds:.0f} seconds",
            retry_after=seconds,
        )
