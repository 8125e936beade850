"""Who runs next, and in which row of the cache: continuous batching in its simple form. Knows ids and lengths only.

Rows of the cache, with `n` answers being decoded and at most one prompt being read:

    0 … n-1   decoded together, one token each a step; contiguous, so that one binding of rows [0, n) covers them
    p ≥ n     the row whose prompt is read, a chunk at a time
    others    free; what they hold rests and may serve as the beginning of another prompt

A request goes  waiting → prompt (first come, first served) → decoding → gone, and may leave at every point. Chunks of
prompts and decode steps take turns, so that a long prompt delays the others by one chunk a token at most, and a prompt
waits at most one step for its next chunk. Where a row changes hands the scheduler says which two rows to exchange; the
caller does it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


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


@dataclass
class _Reading:
    """The prompt that is being read."""

    request_id: str
    row: int
    done: int
    length: int


class Scheduler:
    """The order of work over `slots` rows; prompts are read `chunk` tokens at a time."""

    def __init__(self, slots: int, chunk: int) -> None:
        if slots < 1 or chunk < 1:
            raise ValueError(f"slots {slots} and chunk {chunk} must be positive")
        self.slots = slots
        self._chunk = chunk
        self._waiting: deque[tuple[str, int]] = deque()
        self._reading: _Reading | None = None
        self._decoding: list[str] = []
        self._prefer_decode = False

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
        """Requests in line, first come first."""
        return tuple(request_id for request_id, _ in self._waiting)

    @property
    def busy(self) -> bool:
        """Whether any request is here."""
        return bool(self._waiting or self._decoding or self._reading)

    @property
    def next_in_line(self) -> str | None:
        """The request to admit next, unless a prompt is being read; it needs a free row."""
        return self._waiting[0][0] if self._waiting and self._reading is None else None

    @property
    def free_rows(self) -> tuple[int, ...]:
        """Rows that nobody works in."""
        taken = None if self._reading is None else self._reading.row
        return tuple(row for row in range(len(self._decoding), self.slots) if row != taken)

    def submit(self, request_id: str, prompt_length: int) -> None:
        """Put a request with a prompt of `prompt_length` tokens at the end of the line."""
        self._waiting.append((request_id, prompt_length))

    def admit(self, row: int, cached: int) -> None:
        """Begin the prompt of `next_in_line` in a free `row`, whose first `cached` tokens are there already."""
        if self.next_in_line is None:
            raise ValueError("nobody can begin now")
        request_id, length = self._waiting[0]
        if row not in self.free_rows or not 0 <= cached < length:
            raise ValueError(f"{request_id} cannot begin in row {row} with {cached} of {length} tokens")
        self._waiting.popleft()
        self._reading = _Reading(request_id, row, cached, length)

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
        count = min(self._chunk, reading.length - reading.done)
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
        if request_id in self._decoding:
            row, last = self._decoding.index(request_id), len(self._decoding) - 1
            self._decoding[row] = self._decoding[last]
            self._decoding.pop()
            return Swap(row, last) if row != last else None
        if self._reading is not None and self._reading.request_id == request_id:
            self._reading = None
            return None
        for entry in self._waiting:
            if entry[0] == request_id:
                self._waiting.remove(entry)
                return None
        raise KeyError(request_id)
