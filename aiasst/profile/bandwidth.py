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
_REPEATS = 5
_WINDOW_SECONDS = 0.04
_CHUNK_BYTES = 16 * 2**20
_BUFFER_BYTES = 256 * 2**20
_BUFFER_MOST = 2**30
_CACHES = 8
"""Times the last-level cache that the buffer is large, so that next to nothing of it is still there on the next pass."""


def measure_bandwidth(
    thread_counts: Sequence[int], *, cache_bytes: int, free_bytes: int, progress: ProgressFn = silent
) -> tuple[BandwidthPoint, ...]:
    """Read for 40 ms with each number of threads, five times in turn, and keep the best of each.

    Args:
        thread_counts: numbers of threads to measure.
        cache_bytes: size of the last-level cache.
        free_bytes: memory that could be taken; the buffer takes a quarter of it at most.
    """
    buffer = np.ones(buffer_bytes(cache_bytes, free_bytes) // 4, np.int32)
    samples: dict[int, list[float]] = {count: [] for count in thread_counts}
    total = _REPEATS * len(samples)
    for done in range(total):
        count = thread_counts[done % len(thread_counts)]
        progress(Progress(STAGE, done, total, f"{count} threads"))
        samples[count].append(_read_once(np.array_split(buffer, count)))
    points = tuple(_point(count, found) for count, found in samples.items())
    best = max((point.gigabytes_per_second for point in points), default=0.0)
    progress(Progress(STAGE, total, total, f"{best:.1f} GB/s"))
    return points


def buffer_bytes(cache_bytes: int, free_bytes: int) -> int:
    """Large against the cache, small against the free memory."""
    wanted = min(max(_BUFFER_BYTES, _CACHES * cache_bytes), _BUFFER_MOST)
    return max(4096, min(wanted, free_bytes // 4))


def _point(count: int, samples: list[float]) -> BandwidthPoint:
    best = max(samples)
    return BandwidthPoint(
        threads=count,
        gigabytes_per_second=round(best / 1e9, 2),
        noise=round(1 - statistics.median(samples) / best, 3),
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
