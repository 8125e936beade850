"""What work costs on this machine: memory bandwidth, products by format, shape and rows, attention, overheads, loading.

Products of one chain are timed in turn by rows; all chains are visited twice, seconds apart, and those whose visits differ again
while there is time. Every figure is the best of its repeats, and beside it stands how near another visit came. Time and memory
are bounded on any machine. Decides nothing.
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
from aiasst.profile.bandwidth import Reading
from aiasst.profile.products import FORMS, INPUT, SIZE, Form, chain
from aiasst.profile.sampling import Clock, Trial, take_turns, visit_until_quiet
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
_LOADING_SECONDS = 0.12
"""For a visit of one format."""
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
    """After this long no further chain is visited: a machine so slow or so busy gives no better figures by waiting."""
    attention: tuple[attention.Case, ...]
    attention_seconds: float
    rest_seconds: float
    """For small nodes and the engine, for layers, and for loading, each."""


_SIZES = (_USUAL, _MIDDLE, _SMALL)
QUICK = Grid(_SIZES, _SIZES, 0.15, 32.0, attention.QUICK, 5.0, 3.0)
FULL = Grid((*_SIZES, _LARGE), (*_SIZES, _LARGE), 0.5, 220.0, attention.FULL, 24.0, 10.0)


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
    from aiasst.profile.layers import measure_layers
    from aiasst.profile.overheads import measure_overheads

    counts, cache = thread_counts(hardware), last_level_cache(hardware)
    free = hardware.memory_free_bytes
    reading = Reading(counts, cache_bytes=cache, free_bytes=free, progress=progress)
    reading.visit()
    threads = threads_for(Costs(bandwidth=reading.points))
    chains = _visited(chains_of(grid, cache, free), grid, threads, progress, clock)
    reading.visit()
    attended = _attention(grid, threads, free, progress, clock)
    overheads = measure_overheads(threads, seconds=grid.rest_seconds, clock=clock)
    overheads += measure_layers(threads, chain_bytes=chain_bytes(cache, free), seconds=grid.rest_seconds, clock=clock)
    forms = [form for form in FORMS if form.label in {chain.form.label for chain in chains}]
    loaded = measure_loading(forms, threads, seconds=grid.rest_seconds, clock=clock)
    reading.visit()
    points = [_point(chain, rows, trial, threads) for chain in chains for rows, trial in chain.trials.items()]
    return Costs(
        bandwidth=reading.points, matmul=tuple(points), attention=attended, overheads=overheads, loading=loaded
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
    wanted = chain_bytes(cache_bytes, free_bytes)
    return _even(math.ceil(wanted / form.link_bytes(k, n)) if wanted >= form.link_bytes(k, n) else 1, k, n)


def chain_bytes(cache_bytes: int, free_bytes: int) -> int:
    """Of weights that are to come from memory: twice the last-level cache, and small against the free memory."""
    return min(max(_LEAST_CHAIN, 2 * cache_bytes), _MOST_CHAIN, free_bytes // _COPIES)


def cached_links(form: Form, k: int, n: int) -> int:
    """Products in the chain that stays in the cache: few."""
    return _even(max(2, _CACHED_CHAIN // form.link_bytes(k, n)), k, n)


def _even(links: int, k: int, n: int) -> int:
    return links if k == n else links + links % 2


def _visited(chains: Sequence[Chain], grid: Grid, threads: int, progress: ProgressFn, clock: Clock) -> list[Chain]:
    """Those of `chains` that could be measured in the grid's time."""
    begun, visits = clock(), 0

    def one_visit(one: Chain) -> bool:
        nonlocal visits
        # The second visit is half of the way; what is visited again after it is not known before.
        done = min(visits, 2 * len(chains) - 1)
        again = f" again: noise {one.noise:.0%}" if one.trials else ""
        progress(Progress(STAGE, done, 2 * len(chains), f"{one.form.label}, {one.k} x {one.n}{again}"))
        visits += 1
        try:
            visit(one, threads, grid.form_seconds, clock)
        except (ArtifactError, ResourceError) as error:
            # A format that this build of ONNX Runtime refuses, or memory that is short: the others are still worth knowing.
            progress(Progress(STAGE, done, 2 * len(chains), f"{one.form.label} left out: {error.message}"))
            return False
        return True

    known = visit_until_quiet(chains, one_visit, lambda one: one.noise, lambda: clock() - begun > grid.total_seconds)
    progress(Progress(STAGE, 1, 1, f"{sum(len(one.trials) for one in known)} products with {threads} threads"))
    return known


def visit(one: Chain, threads: int, seconds: float, clock: Clock = time.perf_counter) -> None:
    """Open the chain and time its rows in turn; rows that would take longer than their share of time are left out.

    Raises:
        ArtifactError, ResourceError: it cannot be opened or run.
    """
    model = chain(one.form, one.links, one.k, one.n)
    session = GraphSession.open(model, SessionSettings(threads=threads), settled=True)
    random = np.random.default_rng(0)
    inputs = {rows: random.standard_normal((rows, one.k), np.float32) for rows in one.rows}
    fresh = {rows: Trial(partial(session.run, {INPUT: x})) for rows, x in inputs.items()}
    taken = take_turns(list(fresh.values()), seconds=seconds, longest=seconds / 4, warm=one.cached, clock=clock)
    for rows, trial in fresh.items():
        if any(trial is done for done in taken):
            # The session, and with it the weights, must not stay in memory.
            one.trials.setdefault(rows, Trial(_nothing)).visits += trial.visits


def measure_loading(
    forms: Sequence[Form], threads: int, *, seconds: float, clock: Clock = time.perf_counter
) -> tuple[LoadingPoint, ...]:
    """How fast the weights of a short chain become a session, without and with packing them."""
    begun = clock()
    trials = {form: (Trial(_nothing), Trial(_nothing)) for form in forms}

    def one_visit(form: Form) -> bool:
        model = chain(form, _loaded_links(form))
        for trial, packs in zip(trials[form], (False, True), strict=True):
            trial.run = partial(GraphSession.open, model, SessionSettings(threads=threads, prepack=packs))
        take_turns(trials[form], seconds=_LOADING_SECONDS, clock=clock)
        for trial in trials[form]:
            trial.run = _nothing
        return True

    known = visit_until_quiet(
        forms,
        one_visit,
        lambda form: max(trial.noise for trial in trials[form]),
        lambda: clock() - begun > seconds,
    )
    return tuple(_loading_point(form, *trials[form]) for form in known)


def _loaded_links(form: Form) -> int:
    return max(1, _LOADED_CHAIN // form.link_bytes())


def _loading_point(form: Form, plain: Trial, packed: Trial) -> LoadingPoint:
    size = _loaded_links(form) * form.link_bytes()
    return LoadingPoint(
        format=form.label,
        load_gigabytes_per_second=round(size / plain.best / 1e9, 3),
        packed_gigabytes_per_second=round(size / packed.best / 1e9, 3),
        noise=round(max(plain.noise, packed.noise), 3),
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
