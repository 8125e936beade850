"""What work costs on this machine: memory bandwidth, products by format, shape and rows, attention, overheads, loading.

Products of one chain are timed in turn by rows; chains whose figures were noisy are visited again while there is time, the
noisiest first. Every figure is the best of its repeats, with how noisy they were beside it. Time and memory are bounded on
any machine. Decides nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from aiasst.artifacts.device import AttentionPoint, Costs, Hardware, LoadingPoint, MatmulPoint
from aiasst.errors import ArtifactError, ResourceError
from aiasst.profile import attention
from aiasst.profile.bandwidth import measure_bandwidth
from aiasst.profile.products import FORMS, INPUT, SIZE, Form, chain
from aiasst.profile.sampling import Clock, Trial, noisiest_first, take_turns
from aiasst.progress import Progress, ProgressFn, silent
from aiasst.runtime.session import GraphSession, SessionSettings

STAGE = "products"
ROWS = (1, 2, 4, 8, 16, 32, 128, 512)
_STREAMED_ROWS = (1, 2, 4, 8, 16)
"""Numbers of rows at which reading the weights counts: with more, multiplying hides it."""
_SMALL, _MIDDLE, _USUAL, _LARGE = (256, 768), (512, 1536), (SIZE, SIZE), (SIZE, 4 * SIZE)
_LEAST_CHAIN = 8 * 2**20
_MOST_CHAIN = 192 * 2**20
_CACHED_CHAIN = 4 * 2**20
"""Bytes of a chain that stays in the cache, where one pair of products is not larger already."""
_LOADED_CHAIN = 16 * 2**20
_COPIES = 6
"""Times a chain's bytes that building, opening and packing it take at their peak."""


@dataclass(frozen=True)
class Grid:
    """How much is measured."""

    streamed: tuple[tuple[int, int], ...]
    """Shapes (k, n) whose weights come from memory."""
    cached: tuple[tuple[int, int], ...]
    """Shapes whose weights stay in the cache."""
    form_seconds: float
    """For a visit of one chain, about."""
    total_seconds: float
    """After this long no further chain is begun: a machine so slow or so busy gives no better figures by waiting."""
    attention: tuple[attention.Case, ...]
    attention_seconds: float


QUICK = Grid((_USUAL, _MIDDLE), (_USUAL, _MIDDLE, _SMALL), 0.25, 32.0, attention.QUICK, 6.0)
FULL = Grid((_USUAL, _MIDDLE, _LARGE), (_USUAL, _MIDDLE, _SMALL, _LARGE), 0.8, 210.0, attention.FULL, 20.0)


@dataclass
class Chain:
    """Products of one format and shape, and what was measured of them."""

    form: Form
    k: int
    n: int
    links: int
    cached: bool
    rows: Sequence[int]
    trials: dict[int, Trial] = field(default_factory=dict)

    @property
    def noise(self) -> float:
        """Of its noisiest figure."""
        return max((trial.noise for trial in self.trials.values()), default=0.0)


def measure_costs(
    hardware: Hardware,
    threads_for: Callable[[Costs], int],
    *,
    grid: Grid = QUICK,
    progress: ProgressFn = silent,
    clock: Clock = time.perf_counter,
) -> Costs:
    """Measure `hardware`, which must be this machine.

    Args:
        hardware: what the probes found: cores, caches and free memory bound what is measured.
        threads_for: how many threads products shall have, given the bandwidths.
        grid: how much.
        progress: told of every step.
        clock: in seconds.
    """
    # The engine is only imported where something is measured: run and chat look at a machine at every start.
    from aiasst.profile.overheads import measure_overheads

    counts, cache = thread_counts(hardware), last_level_cache(hardware)
    free = hardware.memory_free_bytes
    bandwidth = measure_bandwidth(counts, cache_bytes=cache, free_bytes=free, progress=progress)
    threads = threads_for(Costs(bandwidth=bandwidth))
    begun = clock()
    measured = _first_visits(chains_of(grid, cache, free), grid, threads, begun, progress, clock)
    _visits_again(measured, grid, threads, begun, progress, clock)
    progress(Progress(STAGE, 1, 1, f"{sum(len(chain.trials) for chain in measured)} products with {threads} threads"))
    points = [_point(chain, rows, trial, threads) for chain in measured for rows, trial in chain.trials.items()]
    return Costs(
        bandwidth=bandwidth,
        matmul=tuple(points),
        attention=_attention(grid, threads, free, progress, clock),
        overheads=measure_overheads(threads, clock=clock),
        loading=tuple(
            loading(form, threads, clock) for form in FORMS if form.label in {one.form.label for one in measured}
        ),
    )


def chains_of(grid: Grid, cache_bytes: int, free_bytes: int) -> list[Chain]:
    """All that is to be measured, what decisions rest on first."""
    found = [
        Chain(form, k, n, links_of(form, cache_bytes, free_bytes, k, n), False, _STREAMED_ROWS)
        for k, n in grid.streamed
        for form in FORMS
    ]
    found += [Chain(form, k, n, cached_links(form, k, n), True, ROWS) for k, n in grid.cached for form in FORMS]
    weight = {form.label: place for place, form in enumerate(FORMS)}
    shapes = {shape: place for place, shape in enumerate(dict.fromkeys((*grid.streamed, *grid.cached)))}
    return sorted(found, key=lambda chain: (shapes[chain.k, chain.n], weight[chain.form.label], chain.cached))


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


def links_of(form: Form, cache_bytes: int, free_bytes: int, k: int = SIZE, n: int = SIZE) -> int:
    """Products in the chain: together twice the last-level cache, so that weights come from memory as in a real model."""
    wanted = min(max(_LEAST_CHAIN, 2 * cache_bytes), _MOST_CHAIN, free_bytes // _COPIES)
    return _even(math.ceil(wanted / form.link_bytes(k, n)) if wanted >= form.link_bytes(k, n) else 1, k, n)


def cached_links(form: Form, k: int, n: int) -> int:
    """Products in the chain that stays in the cache: few."""
    return _even(max(2, _CACHED_CHAIN // form.link_bytes(k, n)), k, n)


def _even(links: int, k: int, n: int) -> int:
    return links if k == n else links + links % 2


def _first_visits(
    chains: Sequence[Chain], grid: Grid, threads: int, begun: float, progress: ProgressFn, clock: Clock
) -> list[Chain]:
    measured: list[Chain] = []
    for done, one in enumerate(chains):
        if clock() - begun > grid.total_seconds:
            break
        progress(Progress(STAGE, done, len(chains), f"{one.form.label}, {one.k} x {one.n}"))
        try:
            visit(one, threads, grid.form_seconds, clock)
        except (ArtifactError, ResourceError) as error:
            # A format that this build of ONNX Runtime refuses, or memory that is short: the others are still worth knowing.
            progress(Progress(STAGE, done, len(chains), f"{one.form.label} left out: {error.message}"))
            continue
        measured.append(one)
    return measured


def _visits_again(
    measured: Sequence[Chain], grid: Grid, threads: int, begun: float, progress: ProgressFn, clock: Clock
) -> None:
    """Measure noisy chains again, at another time, as long as there is some left."""
    for one in noisiest_first(measured, lambda chain: chain.noise):
        if clock() - begun > grid.total_seconds:
            return
        progress(Progress(STAGE, 0, 1, f"{one.form.label}, {one.k} x {one.n} again: noise {one.noise:.0%}"))
        visit(one, threads, grid.form_seconds, clock)


def visit(one: Chain, threads: int, seconds: float, clock: Clock = time.perf_counter) -> None:
    """Open the chain and time its rows in turn; rows that would take longer than their share of time are left out.

    Raises:
        ArtifactError, ResourceError: it cannot be opened or run.
    """
    session = GraphSession.open(chain(one.form, one.links, one.k, one.n), SessionSettings(threads=threads))
    random = np.random.default_rng(0)
    inputs = {rows: random.standard_normal((rows, one.k), np.float32) for rows in one.rows}
    fresh = {rows: Trial(partial(session.run, {INPUT: x})) for rows, x in inputs.items()}
    taken = take_turns(list(fresh.values()), seconds=seconds, longest=seconds / 4, warm=one.cached, clock=clock)
    for rows, trial in fresh.items():
        if any(trial is done for done in taken):
            one.trials.setdefault(rows, Trial(trial.run)).seconds += trial.seconds
            # The session, and with it the weights, must not stay in memory.
            one.trials[rows].run = _nothing


def loading(form: Form, threads: int, clock: Clock = time.perf_counter) -> LoadingPoint:
    """How fast the weights of a short chain become a session, and what packing them adds."""
    links = max(1, _LOADED_CHAIN // form.link_bytes())
    model = chain(form, links)
    size = links * form.link_bytes()
    trials = [
        Trial(partial(GraphSession.open, model, SessionSettings(threads=threads, prepack=packs)))
        for packs in (False, True)
    ]
    plain, packed = take_turns(trials, seconds=0.0, clock=clock)
    return LoadingPoint(
        format=form.label,
        load_gigabytes_per_second=round(size / plain.best / 1e9, 3),
        prepack_gigabytes_per_second=round(size / max(packed.best - plain.best, 1e-3 * packed.best) / 1e9, 3),
        noise=round(packed.noise, 3),
    )


def _attention(grid: Grid, threads: int, free: int, progress: ProgressFn, clock: Clock) -> tuple[AttentionPoint, ...]:
    progress(Progress("attention", 0, 1))
    try:
        points = attention.measure_attention(
            grid.attention, threads, free_bytes=free, seconds=grid.attention_seconds, clock=clock
        )
    except (ArtifactError, ResourceError) as error:
        progress(Progress("attention", 1, 1, f"left out: {error.message}"))
        return ()
    progress(Progress("attention", 1, 1, f"{len(points)} lengths"))
    return points


def _nothing() -> None:
    """What a trial runs that will not be run again."""


def _point(one: Chain, rows: int, trial: Trial, threads: int) -> MatmulPoint:
    best = trial.best / one.links
    return MatmulPoint(
        format=one.form.label,
        rows=rows,
        k=one.k,
        n=one.n,
        threads=threads,
        microseconds=round(best * 1e6, 2),
        gigamacs_per_second=round(rows * one.k * one.n / best / 1e9, 2),
        noise=round(trial.noise, 3),
        cached=one.cached,
    )
