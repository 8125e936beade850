"""Continuous against static batches, and deadlines under load, on a real folder and the real clock: MT-bench's questions.

The 80 questions (first turns), answers of 16 to 512 tokens drawn with a seed; stop tokens do not end them. Before each question
stands a token of its own, so that no prompt is taken from the cache. Static batches are the same engine that is given the next
batch when the last has ended: all answers as long as the longest ("computed on"), or each as long as it is ("leave").
What saturation, load and unloaded latency mean is told in scheduling.py; the latency is measured, see `with_unloaded`.

usage: live_load.py FOLDER QUESTIONS.jsonl [--threads 2] [--slots 16] [--rounds 3] [--requests 1000] [--loads 0.9]
       [--own-loads 0.6] [--alone 16]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scheduling import PATIENCE, SLOTS, percentile

from aiasst.artifacts.model_folder import ModelFolder
from aiasst.engine.engine import Decoder, Engine
from aiasst.engine.requests import Request, Sampling
from aiasst.runtime.session import DecoderSession, SessionSettings
from aiasst.tokenizer import Tokenizer
from measure import interleaved, machine, print_table, summary

SHORTEST, LONGEST = 16, 512


@dataclass(frozen=True)
class Question:
    """A prompt in ids, and how many tokens its answer has."""

    prompt: tuple[int, ...]
    answer: int
    unloaded: float = 0.0
    """Seconds it takes alone."""


@dataclass
class Loaded:
    """What became of requests that came at random."""

    seconds: float
    tokens: int
    missed: int
    waited: list[float]


def questions(file: Path, tokenizer: Tokenizer, context: int, seed: int) -> list[Question]:
    """One for each line; what leaves no room for the longest answer is cut at its beginning."""
    random = np.random.default_rng(seed)
    found = []
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            ids = tokenizer.encode(json.loads(line)["turns"][0])
            room = context - LONGEST - 1
            found.append(Question(tuple(ids[-room:]), int(random.integers(SHORTEST, LONGEST + 1))))
    return found


class Marks:
    """Gives every prompt a first token that the ones before it did not have, as far as the vocabulary goes."""

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary, self._next = vocabulary, 0

    def request(self, name: str, question: Question, tokens: int, deadline: float | None = None) -> Request:
        """To be answered with just so many tokens."""
        self._next = (self._next + 1) % self._vocabulary
        sampling = Sampling(max_tokens=tokens, temperature=0)
        return Request(name, (self._next, *question.prompt), sampling, deadline_seconds=deadline)


def drain(engine: Engine) -> None:
    """Until all have their answers."""
    while engine.busy:
        engine.step()


def continuous(engine: Engine, marks: Marks, work: Sequence[Question]) -> float:
    """Tokens a second when all are there at once."""
    began = time.perf_counter()
    for index, question in enumerate(work):
        engine.submit(marks.request(str(index), question, question.answer))
    drain(engine)
    return sum(question.answer for question in work) / (time.perf_counter() - began)


def static(engine: Engine, marks: Marks, work: Sequence[Question], rows: int, leave: bool) -> float:
    """The same in batches."""
    began = time.perf_counter()
    for first in range(0, len(work), rows):
        batch = work[first : first + rows]
        longest = max(question.answer for question in batch)
        for index, question in enumerate(batch):
            engine.submit(marks.request(str(index), question, question.answer if leave else longest))
        drain(engine)
    return sum(question.answer for question in work) / (time.perf_counter() - began)


def alone(engine: Engine, marks: Marks, question: Question) -> float:
    """Seconds of a request that has the machine to itself; the faster of two, since a stall only adds."""
    taken = []
    for _ in range(2):
        began = time.perf_counter()
        engine.submit(marks.request("alone", question, question.answer))
        drain(engine)
        taken.append(time.perf_counter() - began)
    return min(taken)


def with_unloaded(engine: Engine, marks: Marks, work: Sequence[Question], measured: int) -> list[Question]:
    """The same with their unloaded latencies: so many are measured, the others lie on the plane through those (least squares).

    A request alone takes a time for each token of its prompt, one for each of its answer, and one of its own.
    """
    chosen = sorted(work, key=lambda question: question.answer)[:: max(1, len(work) // measured)]
    sizes = [[1.0, len(question.prompt), question.answer] for question in chosen]
    plane = np.linalg.lstsq(np.array(sizes), np.array([alone(engine, marks, q) for q in chosen]), rcond=None)[0]
    return [replace(q, unloaded=float(plane @ [1.0, len(q.prompt), q.answer])) for q in work]


def under_load(engine: Engine, marks: Marks, work: Sequence[Question], rate: float, count: int, seed: int) -> Loaded:
    """`count` requests, the questions over and over, at random times, `rate` a second, each with its deadline."""
    random = np.random.default_rng(seed)
    arrivals = np.sort(random.uniform(0, count / rate, count)).tolist()
    asked = [work[index % len(work)] for index in random.permutation(count).tolist()]
    outcome = Loaded(0.0, 0, 0, [])
    begun: set[str] = set()
    began, coming = time.perf_counter(), 0
    while coming < count or engine.busy:
        now = time.perf_counter() - began
        while coming < count and arrivals[coming] <= now:
            question = asked[coming]
            # It may have come while a step was under way: its clock runs since then.
            allowed = max(1e-6, arrivals[coming] + PATIENCE * question.unloaded - now)
            engine.submit(marks.request(str(coming), question, question.answer, allowed))
            coming += 1
        if not engine.busy:
            time.sleep(max(0.0, arrivals[coming] - (time.perf_counter() - began)))
            continue
        for event in engine.step():
            index = int(event.request_id)
            after = time.perf_counter() - began - arrivals[index]
            if event.token is not None:
                outcome.tokens += 1
                if event.request_id not in begun:
                    begun.add(event.request_id)
                    outcome.waited.append(after)
            if event.finished is not None:
                outcome.missed += event.finished == "deadline" or after > PATIENCE * asked[index].unloaded
    outcome.seconds = time.perf_counter() - began
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("questions", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--slots", type=int, default=SLOTS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--alone", type=int, default=16, help="questions whose unloaded latency is measured")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--loads", type=float, nargs="*", default=[0.9], help="of what saturates static batches")
    parser.add_argument("--own-loads", type=float, nargs="*", default=[0.6], help="of our own saturation")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    folder = ModelFolder.open(given.folder)
    session: Decoder = DecoderSession.open(folder, SessionSettings(threads=given.threads))
    marks = Marks(session.vocab_size)
    work = questions(given.questions, Tokenizer.load(folder.path), session.context_length, given.seed)

    def engine() -> Engine:
        return Engine(session, slots=given.slots, prefix_bytes=0)

    continuous(engine(), marks, work[: given.slots])  # what is first is slow
    lone = engine()
    work = with_unloaded(lone, marks, work, given.alone)
    ways: dict[str, Callable[[], float]] = {
        "continuous": lambda: continuous(engine(), marks, work),
        "static, answers that ended are computed on": lambda: static(engine(), marks, work, given.slots, False),
        "static, answers that ended leave": lambda: static(engine(), marks, work, given.slots, True),
    }
    speeds = interleaved(given.rounds, *ways.values())
    tokens = statistics.mean(question.answer for question in work)
    print(f"{machine()}; {folder.path.name}, {given.threads} threads, {given.slots} rows")
    print_table(
        (f"{len(work)} questions at once", "tok/s: best (median)", "requests/s: saturation", "continuous is, of the medians"),
        [
            (name, summary(own, 0), f"{statistics.median(own) / tokens:.2f}",
             f"{statistics.median(speeds[0]) / statistics.median(own):.2f}x")
            for name, own in zip(ways, speeds, strict=True)
        ],
    )  # fmt: skip
    own, others = (statistics.median(figures) / tokens for figures in speeds[:2])
    rates = [share * others for share in given.loads] + [share * own for share in given.own_loads]
    warm = engine()
    continuous(warm, marks, work)  # a server has been running for a while: it knows what steps cost
    steps = ", ".join(f"{rows} rows {1000 * seconds:.2f}" for rows, seconds in warm.decode_steps(8))
    print(f"\nms a decode step: {steps}\n")
    lines = []
    for seed, rate in enumerate(rates):
        loaded = under_load(warm, marks, work, rate, given.requests, given.seed + seed)
        lines.append(
            (
                f"{rate:.2f}", f"{rate / others:.0%}", f"{rate / own:.0%}", f"{loaded.tokens / loaded.seconds:.0f}",
                f"{loaded.missed / given.requests:.2%}",
                f"{1000 * percentile(loaded.waited, 0.5):.0f} / {1000 * percentile(loaded.waited, 0.95):.0f}",
            )
        )  # fmt: skip
    print_table(
        (
            "requests/s", "of what saturates static batches", "of our own saturation", "tok/s",
            f"deadline of {PATIENCE:g}x missed, of {given.requests}", "first token ms: median / 95%",
        ),
        lines,
    )  # fmt: skip


if __name__ == "__main__":
    main()
