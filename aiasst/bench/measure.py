"""The measurements: how much of what, in which order, beside whom. Knows no file, and makes no figures of what it measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from aiasst.artifacts.device import Hardware
from aiasst.bench.figures import LEAST_STEPS, MOST_STEPS, steps_within
from aiasst.bench.peers import Peer
from aiasst.bench.rounds import LEAST_ROUNDS, Series, interleave
from aiasst.bench.work import DECODE_PROMPT, Bench, Sample, answer_tokens
from aiasst.errors import UsageError
from aiasst.profile.bandwidth import measure_bandwidth
from aiasst.profile.measure import last_level_cache
from aiasst.progress import ProgressFn, silent

WANTED_ROUNDS = 5


@dataclass(frozen=True)
class Amounts:
    """How much is measured in each round."""

    prompt: int
    """Tokens that are read."""
    counts: tuple[int, ...]
    """Numbers of answers at once, rising."""
    steps: int
    """Tokens of each answer."""


@dataclass(frozen=True)
class Measured:
    """Figures of every round, in the rounds' order."""

    amounts: Amounts
    prefill: list[Sample]
    decode: dict[int, list[Sample]]
    """By the number of answers at once."""
    bandwidth: list[float]
    """Bytes a second."""
    peer_prefill: list[tuple[float, ...]]
    """Seconds of each step, as in the next; nothing without a peer."""
    peer_decode: dict[int, list[tuple[float, ...]]]

    @property
    def rounds(self) -> int:
        """How many there were."""
        return len(self.prefill)

    @property
    def stepping(self) -> float:
        """Seconds that went by in steps of decoding, ours and the peer's."""
        ours = sum(sample.seconds for samples in self.decode.values() for sample in samples)
        return ours + sum(sum(steps) for samples in self.peer_decode.values() for steps in samples)


@dataclass(frozen=True)
class Box:
    """What bounds some rounds."""

    name: str
    seconds: float
    least: int
    """Rounds that are made whatever they take."""


class Machine:
    """Reads memory as the profile does, with as many threads as the model has."""

    def __init__(self, hardware: Hardware, threads: int) -> None:
        self._threads = threads
        self._free = hardware.memory_free_bytes
        self.cache_bytes = last_level_cache(hardware)

    def bandwidth(self, _: int) -> float:
        """Bytes a second."""
        points = measure_bandwidth((self._threads,), cache_bytes=self.cache_bytes, free_bytes=self._free)
        return points[0].gigabytes_per_second * 1e9


def measure(
    work: Bench,
    bandwidth: Callable[[int], float],
    peer: Peer | None,
    *,
    prompt: int,
    counts: Sequence[int],
    seconds: float,
    progress: ProgressFn = silent,
) -> Measured:
    """Warm everything up with one short round, see how long it takes, and fill `seconds` with about five longer ones.

    Args:
        work: the model.
        bandwidth: gives bytes a second; called once a round.
        peer: None where there is nobody to compare with.
        prompt: tokens to read, fewer where the context is shorter.
        counts: numbers of answers at once; those that do not fit are left out.
        seconds: for all of it; three rounds are made whatever they take.
        progress: told of every measurement.

    Raises:
        UsageError: the context is too short for the least that can be measured.
    """
    began = time.perf_counter()
    context = work.engine.context_length
    fitting = tuple(n for n in counts if n <= work.slots and _length(n, LEAST_STEPS) <= context)
    if not fitting:
        least = _length(min(counts), LEAST_STEPS)
        raise UsageError(f"a context of {context} tokens is too short to measure in", f"{least} tokens are the least")
    short = Amounts(min(prompt, context - 2), fitting, LEAST_STEPS)
    trial = _rounds(work, bandwidth, peer, short, Box("warm-up", 0, 1), progress)
    passed = time.perf_counter() - began
    steps = steps_within(
        (seconds - passed) / WANTED_ROUNDS,
        step_seconds=trial.stepping / LEAST_STEPS,
        fixed_seconds=passed - trial.stepping,
        most=min(MOST_STEPS, context - _length(max(fitting), 0)),
    )
    amounts = Amounts(short.prompt, fitting, steps)
    return _rounds(work, bandwidth, peer, amounts, Box("rounds", seconds - passed, LEAST_ROUNDS), progress)


def _length(sequences: int, steps: int) -> int:
    """Tokens of each of so many sequences at the end."""
    return DECODE_PROMPT + answer_tokens(sequences, steps)


def _rounds(
    work: Bench,
    bandwidth: Callable[[int], float],
    peer: Peer | None,
    amounts: Amounts,
    box: Box,
    progress: ProgressFn,
) -> Measured:
    """Ours and the peer's in turn, one number of sequences after the other."""
    prompt, steps = amounts.prompt, amounts.steps
    prefill = Series(f"prompt of {prompt} tokens", partial(work.prefill, prompt))
    decode = {n: Series(_sequences(n), partial(work.decode, n, steps)) for n in amounts.counts}
    memory = Series("memory bandwidth", bandwidth)
    theirs: dict[int, Series[tuple[float, ...]]] = {}
    if peer is not None:
        theirs[0] = Series(f"{peer.name}, {prefill.name}", partial(peer.prefill, prompt))
        for n, ours in decode.items():
            theirs[n] = Series(f"{peer.name}, {ours.name}", partial(peer.decode, n, DECODE_PROMPT, steps))
    order: list[Series[Any]] = []
    for n, own in ((0, prefill), *decode.items()):
        order += [own, theirs[n]] if theirs else [own]
    interleave([*order, memory], seconds=box.seconds, least=box.least, stage=box.name, progress=progress)
    return Measured(
        amounts=amounts,
        prefill=prefill.samples,
        decode={n: series.samples for n, series in decode.items()},
        bandwidth=memory.samples,
        peer_prefill=theirs[0].samples if peer is not None else [],
        peer_decode={n: series.samples for n, series in theirs.items() if n},
    )


def _sequences(count: int) -> str:
    return f"{count} sequence{'s' if count > 1 else ''}"
