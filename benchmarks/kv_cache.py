"""Decoding behind a long past: a step of model folders that differ in their cache, interleaved, on the session that runs them.

Every row has the same past, of random keys and values in the range of the cache's own type: what is computed is the same work as
behind a prompt. Best of the rounds; the first folder is what the others are compared with.

usage: kv_cache.py FOLDER [FOLDER ...]      (two that differ in --cache alone; ROUNDS=5 THREADS=1 in the environment)
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from aiasst.artifacts.model_folder import ModelFolder
from aiasst.runtime.session import DecoderSession, SessionSettings
from measure import interleaved, machine, print_table

ROWS = (1, 8, 16)
PASTS = (100, 900)
STEPS = 10
"""Of one round: what is timed is the fastest of them."""


def step_seconds(session: DecoderSession, rows: int, past: int) -> Callable[[], float]:
    """A function that decodes some tokens behind a past of so many, and says how long the fastest took."""
    random = np.random.default_rng(0)
    shape = (rows, session.kv_heads, past + 1, session.head_dim)
    whole = np.issubdtype(session.cache_dtype, np.integer)
    cache = [
        random.integers(-100, 100, shape).astype(session.cache_dtype)
        if whole
        else random.standard_normal(shape).astype(session.cache_dtype)
        for _ in range(2 * session.layers)
    ]
    ids, lengths = random.integers(0, session.vocab_size, (rows, 1)), [past + 1] * rows
    session.step(ids, lengths, cache)

    def measured() -> float:
        fastest = float("inf")
        for _ in range(STEPS):
            began = time.perf_counter()
            session.step(ids, lengths, cache)
            fastest = min(fastest, time.perf_counter() - began)
        return fastest

    return measured


def main(folders: list[Path], rounds: int, threads: int) -> None:
    """Print a table for each number of rows and length of the past."""
    opened = [ModelFolder.open(folder) for folder in folders]
    sessions = [DecoderSession.open(folder, SessionSettings(threads=threads)) for folder in opened]
    rows_of_table = []
    for rows in ROWS:
        for past in (past for past in PASTS if past < sessions[0].context_length):
            figures = interleaved(rounds, *(step_seconds(session, rows, past) for session in sessions))
            for folder, session, own in zip(opened, sessions, figures, strict=True):
                rows_of_table.append(
                    (
                        folder.path.name, session.cache_dtype.name, f"{folder.cache_bytes_per_token:,}", rows, past,
                        f"{min(own) * 1e3:.2f} (median {statistics.median(own) * 1e3:.2f})",
                        f"{rows / min(own):,.0f}", f"{min(figures[0]) / min(own):.2f}",
                    )
                )  # fmt: skip
    print(f"{machine()}; {threads} threads, best of {rounds} rounds")
    columns = ("folder", "cache", "bytes a token", "rows", "past", "ms a step", "tokens a second", "times the first")
    print_table(columns, rows_of_table)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(list(map(Path, sys.argv[1:])), int(os.environ.get("ROUNDS", "5")), int(os.environ.get("THREADS", "1")))
