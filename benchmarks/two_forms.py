"""What the second form of a folder brings: prompts of 512 tokens and batches, with it and without it, A B A B in one run.

usage: two_forms.py FOLDER [--threads 2] [--rounds 5] [--prompt 512] [--rows 1 8 12 16 32] [--from-rows 12]
FOLDER is what `aiasst quantize DIR --bits 4 --twin` wrote.

Both columns are the product's engine on the same first form, so that the ratio is what the second one adds; below stands the
crossover that `aiasst profile FOLDER` would find here.
"""

from __future__ import annotations

import argparse
import sys
import time
from itertools import count
from pathlib import Path

import numpy as np

from aiasst.artifacts.model_folder import ModelFolder
from aiasst.engine.engine import Decoder, Engine
from aiasst.engine.requests import Request, Sampling
from aiasst.profile.decide import crossover
from aiasst.profile.forms import TOKENS, measure_point
from aiasst.runtime.pair import PairedSession
from aiasst.runtime.session import DecoderSession, SessionSettings
from measure import interleaved, machine, print_table, summary

STEPS, SHORT = 24, 4
_SEEDS = count()


def prompt(vocabulary: int, tokens: int) -> tuple[int, ...]:
    """Random ids, other ones every time, so that no cache has them."""
    return tuple(np.random.default_rng(next(_SEEDS)).integers(0, vocabulary, tokens).tolist())


def prefill(engine: Engine, tokens: int) -> float:
    """Tokens a second of reading a prompt, up to the first token of the answer."""
    began = time.perf_counter()
    engine.submit(Request("prompt", prompt(engine.vocab_size, tokens), Sampling(temperature=0, max_tokens=1)))
    while engine.busy:
        engine.step()
    return tokens / (time.perf_counter() - began)


def decode(engine: Engine, rows: int) -> float:
    """Tokens a second of `rows` answers under way at once, by the median step."""
    for row in range(rows):
        sampling = Sampling(temperature=0, max_tokens=2 * rows + STEPS + 2)
        engine.submit(Request(str(row), prompt(engine.vocab_size, SHORT), sampling))
    begun: set[str] = set()
    while len(begun) < rows:
        begun |= {event.request_id for event in engine.step()}
    taken = []
    for _ in range(STEPS):
        began = time.perf_counter()
        engine.step()
        taken.append(time.perf_counter() - began)
    for row in range(rows):
        engine.cancel(str(row), silent=True)
    return rows / float(np.median(taken))


def engine_on(session: Decoder, rows: list[int]) -> Engine:
    """On a clock that stands still, so that no number of rows is refused for what it costs."""
    return Engine(session, slots=max(rows), clock=lambda: 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 12, 16, 32])
    parser.add_argument("--from-rows", type=int, default=12)
    arguments = parser.parse_args()
    folder = ModelFolder.open(arguments.folder)
    if folder.manifest.twin is None:
        sys.exit(f"{folder.path} has one form: aiasst quantize DIR --bits 4 --twin")
    print(machine())
    first = DecoderSession.open(folder, SessionSettings(threads=arguments.threads))
    twin = DecoderSession.open(folder, SessionSettings(threads=arguments.threads, rests=True), twin=True)
    pair = PairedSession(first, twin, from_rows=arguments.from_rows)
    alone, both = engine_on(first, arguments.rows), engine_on(pair, arguments.rows)
    tokens = min(arguments.prompt, first.context_length - 2)
    print(
        f"{folder.path.name}: {folder.weight_bytes / 1e6:.0f} MB, second form {folder.twin_bytes / 1e6:.0f} MB beside it"
    )
    rows = [
        row(
            f"read a prompt of {tokens}",
            interleaved(arguments.rounds, lambda: prefill(alone, tokens), lambda: prefill(both, tokens)),
        )
    ]
    for number in arguments.rows:
        work = (lambda n=number: decode(alone, n), lambda n=number: decode(both, n))
        rows.append(row(f"decode {number}", interleaved(arguments.rounds, *work)))
    print_table(
        ("tok/s, best (median)", "first form", f"both, from {arguments.from_rows} rows", "ratio of the best"), rows
    )
    points = [measure_point(first, twin, size) for size in TOKENS if size <= first.context_length]
    print_table(
        ("rows of a run", "first form, ms", "second form, ms", "times as fast"),
        [
            (p.tokens, p.first_milliseconds, p.twin_milliseconds, f"{p.first_milliseconds / p.twin_milliseconds:.2f}")
            for p in points
        ],
    )
    found = crossover([(p.tokens, p.first_milliseconds, p.twin_milliseconds) for p in points])
    print(f"crossover: {'none' if found is None else f'{found} rows'}")


def row(name: str, figures: list[list[float]]) -> tuple[str, ...]:
    """A line of the table, for both engines' figures."""
    return name, summary(figures[0]), summary(figures[1]), f"{max(figures[1]) / max(figures[0]):.2f}"


if __name__ == "__main__":
    main()
