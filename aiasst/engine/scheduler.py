"""Who runs next, and in which row of the cache: continuous batching. Knows ids, lengths, priorities and times; no text, no session.

Rows of the cache, with `n` answers being decoded and at most one prompt being read:

    0 … n-1   decoded together, one token each a step; contiguous, so that one binding of rows [0, n) covers them
    p ≥ n     the row whose prompt is read, a chunk at a time
    others    free; what they hold rests and may serve as the beginning of another prompt

A request goes  waiting → prompt → decoding → gone, and may leave at every point. Where a row changes hands the scheduler
says which two rows to exchange; the caller does it. Four rules, all of them over measured costs (costs.py):

    order      first come, first served; a level of priority is worth AGING seconds of having come earlier. What has waited
               is therefore never overtaken for longer than that, and the order of two requests never changes.
    chunks     a chunk of the prompt and a decode step take turns. While answers are decoded, a chunk is as long as fits
               into the inter-token latency beside the step itself, LEAST_CHUNK tokens at least; else `chunk` tokens.
    rows       min(rows, requests) at once, where `rows` is what pays: a step of so many rows leaves room for a chunk in the
               inter-token latency, and gives no fewer tokens a second than fewer rows. Beyond that a prompt waits; and
               for the second step of a number of rows that is new, so that the curve is known as far as it was climbed.
    deadlines  a request past its deadline is `expired`, wherever it is; one whose prompt cannot be read in time is `too_late`.
               The first in line begins that can still keep its own and costs no answer under way a deadline that would hold,
               at what steps take with one row more for as long as that answer lasts. Who has waited for AGING is not held back.
"""

from __future__ import annotations

import heapq
import math
import time
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field

from aiasst.engine.costs import LEAST_CHUNK, Costs

AGING = 10.0
"""Seconds of waiting that count as one level of priority."""
INTER_TOKEN_LATENCY = 0.25
"""Seconds between two tokens of an answer that reading prompts may lead to: a little faster than people read."""
BENEFIT_OF_DOUBT = 2.0
"""A request is given up before its deadline only if reading its prompt this many times faster than measured were too slow."""


@dataclass(frozen=True)
class Prefill:
    """Read `count` tokens of a prompt from `start` on, into `row`; `last` when the prompt is complete with them."""

    request_id: str
    row: int
    start: int
    count: int
    last: bool


@dataclass(frozen=True)
class Decode:
    """One token for each of these requests; their rows are 0, 1, 2, … in this order."""

    request_ids: tuple[str, ...]


@dataclass(frozen=True)
class Swap:
    """Exchange what these two rows hold."""

    first: int
    second: int


@dataclass(order=True)
class _Waiting:
    """A request in line; sorts by whose turn it is."""

    rank: float
    """When it came, less AGING seconds a level of priority."""
    number: int
    request_id: str = field(compare=False)
    length: int = field(compare=False)
    answer: int = field(compare=False)


@dataclass
class _Reading:
    """The prompt that is being read."""

    request_id: str
    row: int
    done: int
    length: int


class Scheduler:
    """The order of work over `slots` rows; prompts are read at most `chunk` tokens at a time."""

    def __init__(
        self,
        slots: int,
        chunk: int,
        *,
        inter_token_latency: float = INTER_TOKEN_LATENCY,
        clock: Callable[[], float] = time.perf_counter,
        tokens_left: Callable[[str], int] | None = None,
    ) -> None:
        """`inter_token_latency` in seconds; `clock` gives seconds, and deadlines are times of it.

        `tokens_left` tells of a request that is decoded how many tokens it may still get; without it nobody waits in line
        for the sake of another's deadline.
        """
        if slots < 1 or chunk < 1 or not inter_token_latency > 0:
            raise ValueError(f"slots {slots}, chunk {chunk} and latency {inter_token_latency} must be positive")
        self.slots = slots
        self.costs = Costs()
        self._chunk = chunk
        self._latency = inter_token_latency
        self._clock = clock
        self._tokens_left = tokens_left
        self._submitted = 0
        self._waiting: list[_Waiting] = []
        self._reading: _Reading | None = None
        self._decoding: list[str] = []
        self._prefer_decode = False
        self._deadlines: dict[str, float] = {}
        self._due: list[tuple[float, str]] = []

    @property
    def decoding(self) -> tuple[str, ...]:
        """Requests that are decoded, in the order of their rows."""
        return tuple(self._decoding)

    @property
    def reading(self) -> str | None:
        """The request whose prompt is being read."""
        return None if self._reading is None else self._reading.request_id

    @property
    def waiting(self) -> tuple[str, ...]:
        """Requests in line, in the order in which they will begin."""
        return tuple(entry.request_id for entry in self._waiting)

    @property
    def busy(self) -> bool:
        """Whether any request is here."""
        return bool(self._waiting or self._decoding or self._reading)

    @property
    def rows(self) -> int:
        """How many requests may be under way at once, by what steps have cost so far; at most `slots`."""
        return self._rows_of(self.slots)

    @property
    def next_in_line(self) -> str | None:
        """The request to admit now; None while a prompt is being read, or while to go on decoding is better."""
        if not self._waiting or self._reading is not None:
            return None
        under_way = len(self._decoding)
        # Where all slots are taken, the caller may be able to make another.
        if under_way and not (
            self.costs.knows(under_way) and under_way < self._rows_of(max(self.slots, under_way + 1))
        ):
            return None
        if self._tokens_left is None or not self._deadlines:
            return self._waiting[0].request_id
        alone, together = (self.costs.step_seconds(under_way + more) for more in (0, 1))
        if alone is None or together is None:
            return self._waiting[0].request_id
        spare = self._spare_seconds(alone, together)
        for entry in self._waiting:
            if not self._comes_too_late(entry, together) and (
                self._is_due(entry) or self._reading_seconds(entry) <= spare
            ):
                return entry.request_id
        # Who cannot keep his own deadline any more begins where that costs nobody else's.
        return None if under_way else self._waiting[0].request_id

    @property
    def free_rows(self) -> tuple[int, ...]:
        """Rows that nobody works in."""
        taken = None if self._reading is None else self._reading.row
        return tuple(row for row in range(len(self._decoding), self.slots) if row != taken)

    def submit(
        self, request_id: str, prompt_length: int, *, answer: int = 1, priority: int = 0, deadline: float | None = None
    ) -> None:
        """Put a request in line: tokens of its prompt, and of its answer at most; it must have ended by `deadline` on the clock."""
        rank = self._clock() - AGING * priority
        self._submitted += 1
        insort(self._waiting, _Waiting(rank, self._submitted, request_id, prompt_length, answer))
        if deadline is not None:
            self._deadlines[request_id] = deadline
            heapq.heappush(self._due, (deadline, request_id))

    def expired(self) -> tuple[str, ...]:
        """Requests whose deadline has passed, each told once; the caller lets them `leave`."""
        now, found = self._clock(), []
        while self._due and self._due[0][0] <= now:
            deadline, request_id = heapq.heappop(self._due)
            # The entry of a request that has left stays here; its id may be in use again.
            if self._deadlines.get(request_id) == deadline:
                found.append(request_id)
        return tuple(dict.fromkeys(found))

    def too_late(self, request_id: str, unread: int) -> bool:
        """Whether `unread` tokens of its prompt cannot be read before the request's deadline, even without company."""
        deadline, cost = self._deadlines.get(request_id), self.costs.token_seconds
        if deadline is None or cost is None:
            return False
        return self._clock() + unread * cost / BENEFIT_OF_DOUBT > deadline

    def admit(self, request_id: str, row: int, cached: int) -> None:
        """Begin the prompt of a request in line, `next_in_line`, in a free `row` whose first `cached` tokens are there already."""
        index = next((i for i, entry in enumerate(self._waiting) if entry.request_id == request_id), None)
        if index is None or self._reading is not None:
            raise ValueError(f"{request_id} cannot begin now")
        entry = self._waiting[index]
        if row not in self.free_rows or not 0 <= cached < entry.length:
            raise ValueError(f"{request_id} cannot begin in row {row} with {cached} of {entry.length} tokens")
        del self._waiting[index]
        self._reading = _Reading(request_id, row, cached, entry.length)

    def resize(self, slots: int) -> None:
        """Work over `slots` rows from now on; only while no prompt is being read, and never below what is decoded."""
        if self._reading is not None or slots < max(1, len(self._decoding)):
            raise ValueError(f"{slots} rows do not hold what is under way")
        self.slots = slots

    def next(self) -> Prefill | Decode | None:
        """The next piece of work; None when there is none, or when the first in line must be admitted first."""
        reading = self._reading
        if self._decoding and (reading is None or self._prefer_decode):
            self._prefer_decode = False
            return Decode(tuple(self._decoding))
        if reading is None:
            return None
        self._prefer_decode = True
        count = min(self._chunk_now(), reading.length - reading.done)
        return Prefill(reading.request_id, reading.row, reading.done, count, reading.done + count == reading.length)

    def prefilled(self, count: int) -> Swap | None:
        """`count` more tokens of the prompt have been read; a complete one joins the decoded rows, perhaps after a swap."""
        reading = self._reading
        if reading is None or count > reading.length - reading.done:
            raise ValueError(f"no prompt of which {count} tokens are left")
        reading.done += count
        if reading.done < reading.length:
            return None
        self._reading = None
        row = len(self._decoding)
        self._decoding.append(reading.request_id)
        return Swap(reading.row, row) if reading.row != row else None

    def leave(self, request_id: str) -> Swap | None:
        """The request ends, wherever it is; the last decoded row moves into the hole, perhaps by a swap.

        Raises:
            KeyError: it is not here.
        """
        self._deadlines.pop(request_id, None)
        if request_id in self._decoding:
            row, last = self._decoding.index(request_id), len(self._decoding) - 1
            self._decoding[row] = self._decoding[last]
            self._decoding.pop()
            return Swap(row, last) if row != last else None
        if self._reading is not None and self._reading.request_id == request_id:
            self._reading = None
            return None
        for index, entry in enumerate(self._waiting):
            if entry.request_id == request_id:
                del self._waiting[index]
                return None
        raise KeyError(request_id)

    def _is_due(self, entry: _Waiting) -> bool:
        """Whether it has waited for so long that nobody's deadline holds it back any more."""
        return self._clock() - entry.rank > AGING

    def _reading_seconds(self, entry: _Waiting) -> float:
        """What it takes to read a whole prompt."""
        return entry.length * (self.costs.token_seconds or 0.0)

    def _spare_seconds(self, alone: float, together: float) -> float:
        """How long a newcomer's prompt may take at most, so that no answer under way misses a deadline it would keep without.

        Args:
            alone: seconds of a decode step as it is now.
            together: with one more row.
        """
        now, spare = self._clock(), math.inf
        for request_id in self._decoding:
            deadline = self._deadlines.get(request_id)
            if deadline is not None and self._tokens_left is not None:
                left = self.costs.expected(self._tokens_left(request_id))
                if left * alone <= deadline - now:
                    spare = min(spare, deadline - now - left * together)
        return spare

    def _comes_too_late(self, entry: _Waiting, together: float) -> bool:
        """Whether the answer that it may get will not be complete by its deadline, in steps of `together` seconds."""
        deadline = self._deadlines.get(entry.request_id)
        if deadline is None:
            return False
        return self._clock() + self._reading_seconds(entry) + self.costs.expected(entry.answer) * together > deadline

    def _rows_of(self, most: int) -> int:
        """How many rows to decode at once, of `most`."""
        return self.costs.best_rows(most, self._latency - LEAST_CHUNK * (self.costs.token_seconds or 0.0))

    def _chunk_now(self) -> int:
        """Tokens that may be read before the next decode step."""
        if not self._decoding:
            return self._chunk
        least, cost = min(LEAST_CHUNK, self._chunk), self.costs.token_seconds
        if cost is None:
            return least
        # The prompt joins the others when it is complete: its row is part of the step that follows.
        room = self._latency - (self.costs.step_seconds(len(self._decoding) + 1) or 0.0)
        return self._chunk if room >= cost * self._chunk else max(least, math.floor(room / cost))
