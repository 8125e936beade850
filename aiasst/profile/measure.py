"""What work costs on this machine, in seconds of measuring: memory bandwidth by threads, products by weight format and rows.

Every figure is the best of several repeats, taken in turn so that a busy second of the host does not hit one figure alone,
with how noisy they were beside it. Time and memory are bounded on any machine. Decides nothing.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np

from aiasst.artifacts.device import Costs, Hardware, MatmulPoint
from aiasst.errors import ArtifactError, ResourceError
from aiasst.profile.bandwidth import measure_bandwidth
from aiasst.profile.products import FORMS, INPUT, SIZE, Form, chain
from aiasst.progress import Progress, ProgressFn, silent
from aiasst.runtime.session import GraphSession, SessionSettings

STAGE = "products"
ROWS = (1, 8, 32, 128)
_FORM_SECONDS = 0.6
_LEAST_REPEATS, _MOST_REPEATS = 3, 12
_TOTAL_SECONDS = 15.0
"""After this long no further format is begun: a machine so slow or so busy gives no better figures by waiting."""
_LEAST_CHAIN = 8 * 2**20
_MOST_CHAIN = 192 * 2**20
_COPIES = 6
"""Times a chain's bytes that building, opening and packing it take at their peak."""


def measure_costs(hardware: Hardware, threads_for: Callable[[Costs], int], *, progress: ProgressFn = silent) -> Costs:
    """Measure `hardware`, which must be this machine.

    Args:
        hardware: what the probes found: cores, caches and free memory bound what is measured.
        threads_for: how many threads products shall have, given the bandwidths.
        progress: told of every step.
    """
    counts, cache = thread_counts(hardware), last_level_cache(hardware)
    free = hardware.memory_free_bytes
    bandwidth = measure_bandwidth(counts, cache_bytes=cache, free_bytes=free, progress=progress)
    threads = threads_for(Costs(bandwidth=bandwidth))
    points: list[MatmulPoint] = []
    begun = time.perf_counter()
    for done, form in enumerate(FORMS):
        if time.perf_counter() - begun > _TOTAL_SECONDS:
            break
        progress(Progress(STAGE, done, len(FORMS), form.label))
        try:
            points += measure_form(form, links_of(form, cache, free), threads)
        except (ArtifactError, ResourceError) as error:
            # A format that this build of ONNX Runtime refuses, or memory that is short: the others are still worth knowing.
            progress(Progress(STAGE, done, len(FORMS), f"{form.label} left out: {error.message}"))
    progress(Progress(STAGE, len(FORMS), len(FORMS), f"{len(points)} products with {threads} threads"))
    return Costs(bandwidth=bandwidth, matmul=tuple(points))


def thread_counts(hardware: Hardware) -> tuple[int, ...]:
    """1, 2, 4, … up to the usable hardware threads, and the usable physical cores."""
    most = max(1, math.floor(hardware.usable_cores))
    counts = {2**power for power in range(most.bit_length()) if 2**power <= most} | {most}
    kinds = [group.physical_cores for group in hardware.core_groups]
    counts |= {cores for cores in (sum(kinds), kinds[0] if kinds else 1) if 1 <= cores <= most}
    return tuple(sorted(counts))


def last_level_cache(hardware: Hardware) -> int:
    """Bytes of the largest level, all instances; 0 where it is not known."""
    return max((cache.bytes for cache in hardware.caches if cache.kind != "instruction"), default=0)


def links_of(form: Form, cache_bytes: int, free_bytes: int) -> int:
    """Products in the chain: together twice the last-level cache, so that weights come from memory as in a real model."""
    wanted = min(max(_LEAST_CHAIN, 2 * cache_bytes), _MOST_CHAIN, free_bytes // _COPIES)
    return max(1, math.ceil(wanted / form.link_bytes)) if wanted >= form.link_bytes else 1


def measure_form(form: Form, links: int, threads: int, rows: Sequence[int] = ROWS) -> list[MatmulPoint]:
    """One point for each of `rows` (ascending); rows that would take longer than their share of time are left out."""
    session = GraphSession.open(chain(form, links), SessionSettings(threads=threads))
    random = np.random.default_rng(0)
    samples: dict[int, list[float]] = {}
    begun = time.perf_counter()
    for count in rows:
        # The first run of a size allocates; it also tells whether the next size is affordable.
        first = _seconds(session, random.standard_normal((count, SIZE), np.float32))
        samples[count] = [first]
        if first * 4 > _FORM_SECONDS:
            break
    for repeat in range(_MOST_REPEATS):
        if repeat >= _LEAST_REPEATS and time.perf_counter() - begun > _FORM_SECONDS:
            break
        for count, taken in samples.items():
            taken.append(_seconds(session, random.standard_normal((count, SIZE), np.float32)))
    return [_point(form, count, taken[1:], links, threads) for count, taken in samples.items()]


def _seconds(session: GraphSession, x: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> float:
    begun = time.perf_counter()
    session.run({INPUT: x})
    return time.perf_counter() - begun


def _point(form: Form, rows: int, samples: Sequence[float], links: int, threads: int) -> MatmulPoint:
    best = min(samples) / links
    return MatmulPoint(
        format=form.label,
        rows=rows,
        k=SIZE,
        n=SIZE,
        threads=threads,
        microseconds=round(best * 1e6, 2),
        gigamacs_per_second=round(rows * SIZE * SIZE / best / 1e9, 2),
        noise=round(statistics.median(samples) / links / best - 1, 3),
    )
