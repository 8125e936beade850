"""Continuous against static batches, and how many deadlines hold under load: the real engine on a virtual clock.

The session is a fake one that only lets time pass: seconds of a decode step by its rows, and of a prompt by its tokens, as
measured for a model of a billion parameters in 4 bits on two cores. Nothing depends on the machine this runs on; `live_load.py`
does the same with a real folder.

What words mean here. The saturation of a way of working is the highest rate at which its throughput still follows the
arrivals: requests a second when all of them are there at once; beyond it the line grows for ever. Load is the rate of arrivals as
a share of a saturation; arrivals are a Poisson process of which the number in the window is known, so that the load is what it
says in every run. A request's unloaded latency is what it takes alone, with the machine to itself.

usage: scheduling.py [REQUESTS] [SEEDS]      (1000 requests, seeds 1 to 5)
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from aiasst.engine.engine import Engine
from aiasst.engine.requests import Request, Sampling
from aiasst.engine.scheduler import INTER_TOKEN_LATENCY

Curve = tuple[tuple[int, ...], tuple[float, ...]]
"""Rows, and seconds of a decode step with so many; straight between."""
DECODE: Curve = ((1, 8, 16), (0.017, 0.040, 0.065))
PREFILL = 0.0027
"""Seconds a token of a prompt; a short one takes a decode step's time at least."""
SLOTS = 16
PATIENCE = 3.0
"""A deadline, in latencies that the request has when it is alone."""


@dataclass(frozen=True)
class Job:
    """A request, as far as time is concerned."""

    prompt: int
    answer: int
    arrives: float = 0.0

    @property
    def unloaded(self) -> float:
        """Seconds it takes alone."""
        return prefill_seconds(self.prompt) + (self.answer - 1) * decode_seconds(1)


def decode_seconds(rows: float, curve: Curve = DECODE) -> float:
    """What a decode step takes."""
    return float(np.interp(rows, *curve))


def prefill_seconds(tokens: int) -> float:
    """What a run over so many tokens of a prompt takes."""
    return max(PREFILL * tokens, decode_seconds(1))


def ragged(count: int, seed: int) -> list[Job]:
    """Requests that are all there at once: prompts of 16 to 128 tokens, answers of 16 to 512, uniformly."""
    random = np.random.default_rng(seed)
    return [Job(int(random.integers(16, 129)), int(random.integers(16, 513))) for _ in range(count)]


def arriving(jobs: Sequence[Job], rate: float, seed: int) -> list[Job]:
    """The same requests at random times, `rate` a second: a Poisson process, given that so many came in the window."""
    times = np.sort(np.random.default_rng(seed).uniform(0, len(jobs) / rate, len(jobs)))
    return [replace(job, arrives=float(time)) for job, time in zip(jobs, times, strict=True)]


class TimedSession:
    """Computes nothing and takes its time on a clock of its own."""

    layers = kv_heads = head_dim = 1
    vocab_size = 64
    context_length = 1024
    cache_dtype = np.dtype(np.float32)
    weight_bytes = 0

    def __init__(self, curve: Curve = DECODE) -> None:
        self.now = 0.0
        self.curve = curve

    def step(
        self, ids: np.ndarray, lengths: Sequence[int], cache_rows: Sequence[np.ndarray], all_logits: bool = False
    ) -> np.ndarray:
        rows, new = ids.shape
        self.now += decode_seconds(rows, self.curve) if new == 1 else prefill_seconds(new)
        return np.zeros((rows, self.vocab_size), np.float32)


@dataclass
class Outcome:
    """What became of the requests."""

    seconds: float = 0.0
    tokens: int = 0
    waited: list[float] = field(default_factory=list)
    """Seconds to the first token, of each that got one."""
    gaps: list[float] = field(default_factory=list)
    """Seconds between two tokens of one answer."""
    missed: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Of answers."""
        return self.tokens / self.seconds


def continuous(
    jobs: Sequence[Job],
    *,
    slots: int = SLOTS,
    patience: float | None = None,
    curve: Curve = DECODE,
    inter_token_latency: float = INTER_TOKEN_LATENCY,
) -> Outcome:
    """Through the engine; with `patience`, a request that takes longer than so many times its unloaded latency is missed."""
    session = TimedSession(curve)
    engine = Engine(session, slots=slots, clock=lambda: session.now, inter_token_latency=inter_token_latency)
    coming = sorted(enumerate(jobs), key=lambda pair: pair[1].arrives, reverse=True)
    last: dict[str, float] = {}
    deadlines: dict[str, float] = {}
    outcome = Outcome()
    while coming or engine.busy:
        if not engine.busy:
            session.now = max(session.now, coming[-1][1].arrives)
        while coming and coming[-1][1].arrives <= session.now:
            index, job = coming.pop()
            ends = job.arrives + (math.inf if patience is None else patience * job.unloaded)
            # It may have come while a step was under way: its clock runs since then.
            allowed = None if patience is None else max(1e-9, ends - session.now)
            deadlines[str(index)] = ends
            sampling = Sampling(max_tokens=job.answer, temperature=0)
            # No two prompts begin alike, so that none is taken from the cache.
            prompt = tuple(np.random.default_rng(index).integers(0, session.vocab_size, job.prompt).tolist())
            engine.submit(Request(str(index), prompt, sampling, deadline_seconds=allowed))
        for event in engine.step():
            if event.token is not None:
                outcome.tokens += 1
                since = last.get(event.request_id)
                if since is None:
                    outcome.waited.append(session.now - jobs[int(event.request_id)].arrives)
                else:
                    outcome.gaps.append(session.now - since)
                last[event.request_id] = session.now
            if event.finished is not None and (
                event.finished == "deadline" or session.now > deadlines[event.request_id]
            ):
                outcome.missed += 1
    outcome.seconds = session.now
    return outcome


def static(jobs: Sequence[Job], *, rows: int = SLOTS, shrinking: bool = False) -> Outcome:
    """In batches of `rows`, each begun when the one before has ended; no padding of prompts is charged.

    Answers that have ended are computed on to the end of the batch, as static engines do, unless it is `shrinking`.
    """
    outcome = Outcome()
    for first in range(0, len(jobs), rows):
        batch = jobs[first : first + rows]
        outcome.seconds += sum(prefill_seconds(job.prompt) for job in batch)
        for step in range(1, max(job.answer for job in batch)):
            alive = sum(job.answer > step for job in batch)
            outcome.seconds += decode_seconds(alive if shrinking else len(batch))
        outcome.tokens += sum(job.answer for job in batch)
    return outcome


def saturation(outcome: Outcome, jobs: Sequence[Job]) -> float:
    """Requests a second that a way of working gets through when they are all there at once."""
    return len(jobs) / outcome.seconds


def under_load(jobs: Sequence[Job], rate: float, seed: int) -> Outcome:
    """What becomes of the jobs when they come at random, `rate` a second, each with its deadline."""
    return continuous(arriving(jobs, rate, seed), patience=PATIENCE)


def keepable(jobs: Sequence[Job], slots: int = SLOTS, patience: float = PATIENCE) -> float:
    """A rate, requests a second, beyond which no order of work keeps all deadlines, not even if requests came evenly.

    By Little's law no more than rate x patience x unloaded latency are under way at once on average, and so many rows, all of
    them decoded whenever no prompt is read, give so many tokens a second at most: the speed is concave in the rows.
    """
    unloaded, reading, answer = (
        float(np.mean([function(job) for job in jobs]))
        for function in (lambda j: j.unloaded, lambda j: prefill_seconds(j.prompt), lambda j: j.answer - 1)
    )

    def busy(rate: float) -> float:
        decoding = 1 - rate * reading
        rows = min(slots, rate * patience * unloaded / decoding)
        return rate * (reading + answer * decode_seconds(rows) / rows) if rows >= 1 else 0.0

    low, high = 0.0, 0.999 / reading
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if busy(middle) <= 1 else (low, middle)
    return low


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]


SHARES = (0.6, 0.8, 0.9, 1.0, 1.2)
"""Loads, of what saturates static batches; and of our own saturation."""
OWN_SHARES = (0.6, 0.75, 0.9)


def main(count: int, seeds: int) -> None:
    from measure import print_table

    works = [ragged(count, seed) for seed in range(1, seeds + 1)]
    jobs = works[0]
    ours, padded, shrinking = continuous(jobs), static(jobs), static(jobs, shrinking=True)
    names = (
        ("continuous", ours),
        ("static, answers that ended are computed on", padded),
        ("static, answers that ended leave", shrinking),
    )
    print_table(
        (f"{count} requests at once, {SLOTS} rows", "tok/s", "requests/s: saturation", "continuous is"),
        [
            (
                name,
                f"{o.tokens_per_second:.1f}",
                f"{saturation(o, jobs):.3f}",
                f"{ours.tokens_per_second / o.tokens_per_second:.2f}x",
            )
            for name, o in names
        ],
    )
    own, others = saturation(ours, jobs), saturation(padded, jobs)
    print(
        f"\nbeyond {keepable(jobs) / own:.0%} of our own saturation no order of work keeps deadlines of {PATIENCE:g}x\n"
    )
    loads = sorted({round(share * others, 9) for share in SHARES} | {round(share * own, 9) for share in OWN_SHARES})
    lines = []
    for rate in loads:
        runs = [under_load(work, rate, seed=100 + seed) for seed, work in enumerate(works)]
        missed = [run.missed / count for run in runs]
        waited = [seconds for run in runs for seconds in run.waited]
        gaps = [seconds for run in runs for seconds in run.gaps]
        lines.append(
            (
                f"{rate / others:.0%}",
                f"{rate / own:.0%}",
                f"{np.mean([run.tokens_per_second for run in runs]):.1f}",
                f"{np.mean(missed):.2%} ({min(missed):.1%} to {max(missed):.1%})",
                f"{percentile(waited, 0.5):.2f} / {percentile(waited, 0.95):.2f}",
                f"{1000 * percentile(gaps, 0.5):.0f} / {1000 * percentile(gaps, 0.99):.0f} / {1000 * max(gaps):.0f}",
            )
        )
    print_table(
        (
            "load, of what saturates static batches",
            "of our own saturation",
            "tok/s",
            f"deadline of {PATIENCE:g}x missed, {seeds} seeds of {count}",
            "first token s: median / 95%",
            "gap ms: median / 99% / longest",
        ),
        lines,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000, int(sys.argv[2]) if len(sys.argv) > 2 else 5)
