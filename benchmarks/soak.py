"""A long life: thousands of requests of all kinds through one engine, each answer held against the one computed alone.

Prompts of random length, answers of random length, greedy and sampled, with stop strings, with deadlines, some cancelled on the
way, more of them in line than there are rows. Memory is looked at all along. fp32 and w8a8 folders must give every answer as it is
alone; kernels of int4 and int8 round one row otherwise than several, so there the share is told.

usage: soak.py FOLDER [--requests 10000] [--slots 16] [--rate R] [--threads 2] [--alone 10000]

--rate R: requests arrive R a second, at random times, and how long they took is told; without it the line is kept full.
--alone N: how many of the answers are computed again, alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import numpy as np
import psutil

from aiasst.artifacts.model_folder import ModelFolder
from aiasst.engine.requests import Sampling
from aiasst.engine.text import TextEngine, TextEvent, TextRequest
from aiasst.profile import quick_config
from measure import machine, print_table

VOCABULARY = """
once upon a time there was little girl boy dog cat who liked to play in the garden with her ball and his friend they saw big red
bird tree one day mom said we can go home but it very happy sad because found lost under water sun
"""
STOPS = ((".",), ("and the", "\n"), ("!", "?"), ("happy",))
WARM = 0.2
"""Share of the requests after which memory counts: the store of prefixes has filled its budget by then."""
IN_LINE = 8
"""Requests that wait beside those under way, where no rate is given."""


@dataclass
class Job:
    """A request, and what is to happen to it and what has."""

    request: TextRequest
    arrives: float = 0.0
    cancel_after: int | None = None
    """Events of its answer after which it is cancelled."""
    text: str = ""
    events: int = 0
    ended: str = ""
    seconds: float = 0.0


@dataclass
class Memory:
    """Resident bytes over time."""

    process: psutil.Process = field(default_factory=psutil.Process)
    seen: list[int] = field(default_factory=list)

    def look(self) -> None:
        """Note what is resident now."""
        self.seen.append(self.process.memory_info().rss)


def jobs(count: int, rate: float | None, seed: int) -> Iterator[Job]:
    """Random requests; the same seed gives the same ones."""
    random, known = np.random.default_rng(seed), VOCABULARY.split()
    arrives = 0.0
    for number in range(count):
        words = " ".join(random.choice(known, int(random.integers(1, 150))))
        greedy = random.random() < 0.4
        sampling = Sampling(
            max_tokens=int(random.integers(1, 65)),
            temperature=0.0 if greedy else float(random.uniform(0.5, 1.2)),
            top_p=float(random.choice([1.0, 0.9])),
            top_k=int(random.choice([0, 40])),
            repetition_penalty=float(random.choice([1.0, 1.1])),
            seed=number,
        )
        stop = STOPS[int(random.integers(len(STOPS)))] if random.random() < 0.3 else ()
        late = float(random.uniform(0.001, 0.2)) if random.random() < 0.05 else None
        request = TextRequest(str(number), words, None, sampling, tuple(stop), deadline_seconds=late)
        if rate is not None:
            arrives += float(random.exponential(1 / rate))
        yield Job(request, arrives, int(random.integers(0, 20)) if random.random() < 0.1 else None)


def live(
    engine: TextEngine,
    source: Iterator[Job],
    total: int,
    slots: int,
    rate: float | None,
    memory: Memory,
    ended: IO[str],
) -> None:
    """Let all requests through; those that were under way together had company of every kind.

    What became of each is a line of `ended`: this script must not grow either.
    """
    open_jobs: dict[str, Job] = {}
    done = 0
    waiting = next(source, None)
    began = time.perf_counter()
    while waiting is not None or open_jobs:
        now = time.perf_counter() - began
        while waiting is not None and (waiting.arrives <= now if rate else len(open_jobs) < slots + IN_LINE):
            waiting.seconds = -now
            open_jobs[waiting.request.id] = waiting
            engine.submit(waiting.request)
            if waiting.cancel_after == 0:
                engine.cancel(waiting.request.id)
            waiting = next(source, None)
        if not engine.busy and waiting is not None:
            time.sleep(max(0.0, min(0.01, waiting.arrives - now)))
            continue
        for event in engine.step():
            job = open_jobs[event.request_id]
            note(job, event)
            if job.ended:
                job.seconds += time.perf_counter() - began
                del open_jobs[event.request_id]
                ended.write(json.dumps([int(event.request_id), job.ended, job.seconds, job.text]) + "\n")
                done += 1
                if done % max(1, total // 200) == 0:
                    memory.look()
                    progress(done, total, memory)
            elif job.events == job.cancel_after:
                engine.cancel(event.request_id)


def note(job: Job, event: TextEvent) -> None:
    """Add an event to what is known of a request."""
    job.events += 1
    job.text += event.text
    job.ended = event.finished or ""


def progress(done: int, total: int, memory: Memory) -> None:
    """One line that is written over."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{done} of {total}, {memory.seen[-1] / 1e6:.1f} MB resident ")


def same_alone(engine: TextEngine, job: Job) -> bool:
    """Whether the answer is what it is without company; one that was cut short must be how that one begins."""
    alone = "".join(event.text for event in engine.generate(replace(job.request, deadline_seconds=None)))
    return alone.startswith(job.text) if job.ended in ("cancelled", "deadline") else alone == job.text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--alone", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    model = ModelFolder.open(given.folder)
    config = quick_config(model)
    changed = {"slots": config.decisions.slots.model_copy(update={"value": given.slots})}
    if given.threads:
        changed["threads"] = config.decisions.threads.model_copy(update={"value": given.threads})
    config = config.model_copy(update={"decisions": config.decisions.model_copy(update=changed)})
    engine, memory = TextEngine(model, config), Memory()
    began = time.perf_counter()
    source = jobs(given.requests, given.rate, given.seed)
    with TemporaryFile("w+", encoding="utf-8") as file:
        live(engine, source, given.requests, given.slots, given.rate, memory, file)
        seconds = time.perf_counter() - began
        file.seek(0)
        told = {number: rest for number, *rest in map(json.loads, file)}
    done = list(jobs(given.requests, given.rate, given.seed))
    for number, job in enumerate(done):
        job.ended, job.seconds, job.text = told[number]
    stats = engine.engine.stats
    assert len(done) == given.requests and not engine.busy
    again = [same_alone(engine, job) for job in done[: given.alone]]
    warm = memory.seen[int(WARM * len(memory.seen)) :]
    print(machine())
    ends = {ended: sum(job.ended == ended for job in done) for ended in ("stop", "length", "cancelled", "deadline")}
    rows = [
        ["requests", f"{len(done)} in {seconds:.0f} s: {len(done) / seconds:.1f} a second"],
        ["ended by", ", ".join(f"{ended} {count}" for ended, count in ends.items())],
        ["tokens", f"{stats.decoded_tokens} decoded, {stats.prefill_tokens} read, {stats.cached_tokens} taken over"],
        ["as alone", f"{sum(again)} of {len(again)}"],
        ["resident, MB", f"{warm[0] / 1e6:.1f} warm, {max(warm) / 1e6:.1f} at most, {warm[-1] / 1e6:.1f} at the end"],
        [
            "MB at each tenth",
            ", ".join(f"{memory.seen[len(memory.seen) * n // 10 - 1] / 1e6:.0f}" for n in range(1, 11)),
        ],
        ["growth", f"{100 * (max(warm) / warm[0] - 1):.2f}% at most, {100 * (warm[-1] / warm[0] - 1):.2f}% at the end"],
    ]
    if given.rate:
        took = np.array([job.seconds for job in done if job.ended in ("stop", "length")])
        rows.append(["seconds a request", f"{np.median(took):.3f} median, {np.quantile(took, 0.99):.3f} p99"])
    print_table(("figure", given.folder.name), rows)


if __name__ == "__main__":
    main()
