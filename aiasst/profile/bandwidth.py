"""Memory read bandwidth by number of threads. Decides nothing and knows no model.

A decode step reads every weight once, so reading is what counts; a copy or triad would count writes as well. Each thread
takes the maximum of 32-bit integers over its part of one large buffer: NumPy does that with vector instructions and
without the interpreter's lock, several times faster than one core's memory can deliver, so that the memory is the limit.
The buffer is written by one thread, as weights are: on a machine of several NUMA nodes it lies on one of them, and the
curve shows what threads on the others get from there.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from aiasst.artifacts.device import BandwidthPoint
from aiasst.progress import Progress, ProgressFn, silent

Buffer = npt.NDArray[np.int32]

STAGE = "bandwidth"
_REPEATS = 8
"""Of each number of threads in a visit."""
_WINDOW_SECONDS = 0.04
_CHUNK_BYTES = 16 * 2**20
_BUFFER_BYTES = 256 * 2**20
_BUFFER_MOST = 2**30
_CACHES = 8
"""Times the last-level cache that the buffer is large, so that next to nothing of it is still there on the next pass."""


def measure_bandwidth(
    thread_counts: Sequence[int], *, cache_bytes: int, free_bytes: int, progress: ProgressFn = silent
) -> tuple[BandwidthPoint, ...]:
    """What a single visit reads; arguments as of Reading."""
    reading = Reading(thread_counts, cache_bytes=cache_bytes, free_bytes=free_bytes, progress=progress)
    reading.visit()
    return reading.points


class Reading:
    """Bandwidths that are visited several times, seconds apart, since neighbours on the host read as well."""

    def __init__(
        self, thread_counts: Sequence[int], *, cache_bytes: int, free_bytes: int, progress: ProgressFn = silent
    ) -> None:
        """Nothing is measured or taken yet.

        Args:
            thread_counts: numbers of threads to measure.
            cache_bytes: size of the last-level cache.
            free_bytes: memory that could be taken; the buffer takes a quarter of it at most.
            progress: told of every reading.
        """
        self._size = buffer_bytes(cache_bytes, free_bytes)
        self._visits: dict[int, list[list[float]]] = {count: [] for count in thread_counts}
        self._progress = progress

    def visit(self) -> None:
        """Read for 40 ms with each number of threads, eight times in turn."""
        # A new buffer each time: where its pages lie is part of the chance.
        buffer = np.ones(self._size // 4, np.int32)
        counts, total = tuple(self._visits), _REPEATS * len(self._visits)
        for visits in self._visits.values():
            visits.append([])
        for done in range(total):
            count = counts[done % len(counts)]
            self._progress(Progress(STAGE, done, total, f"{count} threads"))
            self._visits[count][-1].append(_read_once(np.array_split(buffer, count)))
        best = max((point.gigabytes_per_second for point in self.points), default=0.0)
        self._progress(Progress(STAGE, total, total, f"{best:.1f} GB/s"))

    @property
    def points(self) -> tuple[BandwidthPoint, ...]:
        """The best of all visits so far."""
        return tuple(_point(count, visits) for count, visits in self._visits.items())


def buffer_bytes(cache_bytes: int, free_bytes: int) -> int:
    """Large against the cache, small against the free memory."""
    wanted = min(max(_BUFFER_BYTES, _CACHES * cache_bytes), _BUFFER_MOST)
    return max(4096, min(wanted, free_bytes // 4))


def _point(count: int, visits: Sequence[Sequence[float]]) -> BandwidthPoint:
    best, *others = sorted(map(max, visits), reverse=True)
    next_best = others[0] if others else statistics.median(visits[0])
    return BandwidthPoint(
        threads=count, gigabytes_per_second=round(best / 1e9, 2), noise=round(1 - next_best / best, 3)
    )


def _read_once(parts: Sequence[Buffer]) -> float:
    """Bytes a second that one thread a part reads, all beginning together."""
    start = threading.Barrier(len(parts))
    speeds = [0.0] * len(parts)

    def read(number: int) -> None:
        part = parts[number]
        chunks = np.array_split(part, max(1, part.nbytes // _CHUNK_BYTES))
        taken, turn = 0, 0
        start.wait()
        begun = time.perf_counter()
        while (passed := time.perf_counter() - begun) < _WINDOW_SECONDS or not taken:
            chunk = chunks[turn % len(chunks)]
            chunk.max()
            taken, turn = taken + chunk.nbytes, turn + 1
        speeds[number] = taken / passed

    threads = [threading.Thread(target=read, args=(number,)) for number in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(speeds)
