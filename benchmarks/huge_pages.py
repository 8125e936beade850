"""Whether huge pages help: the same steps with ONNX Runtime's memory on pages of 4 KiB and of 2 MiB, and without its arena.

"4 KiB pages" switches `runtime.pages` off; "as it is" is what everybody gets; "from the start" has the C library ask.

usage: huge_pages.py FOLDER [--rounds 5]

Each variant is a process of its own, in turn. glibc (2.35 and later) asks for huge pages for all that it allocates under
GLIBC_TUNABLES=glibc.malloc.hugetlb=1, which is what packed weights lie in; keys and values are NumPy's, which asks for them
itself. How much the kernel gave is read from /proc/self/smaps_rollup and printed beside the times.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from aiasst.artifacts.model_folder import ModelFolder
from aiasst.runtime import pages
from aiasst.runtime.session import DecoderSession, SessionSettings
from measure import machine, print_table

VARIANTS: dict[str, tuple[dict[str, str], str]] = {
    "4 KiB pages": ({}, "small"),
    "as it is": ({}, "moved"),
    "from the start": ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}, "small"),
    "no arena": ({}, "none"),
}
ROWS, PAST, PROMPT = (1, 8), 64, 256
_SECONDS = 1.0


def child(folder: Path, threads: int, how: str) -> None:
    """Print seconds of a step for each number of rows, of a prompt, of opening; and the bytes that lie on huge pages."""
    pages.move_later = pages.move_to_huge_pages if how == "moved" else lambda: 0
    began = time.perf_counter()
    session = DecoderSession.open(ModelFolder.open(folder), SessionSettings(threads=threads, arena=how != "none"))
    opened = time.perf_counter() - began

    def step(rows: int, new: int, past: int) -> float:
        shape = (rows, session.kv_heads, past + new, session.head_dim)
        cache = [np.zeros(shape, session.cache_dtype) for _ in range(2 * session.layers)]
        ids = np.random.default_rng(0).integers(0, session.vocab_size, (rows, new))
        return fastest(lambda: session.step(ids, [past + new] * rows, cache))

    found = [step(rows, 1, PAST) for rows in ROWS] + [step(1, PROMPT, 0)]
    huge = re.search(r"AnonHugePages:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text())
    print(json.dumps([*found, opened, int(huge[1]) * 1024 if huge else 0]))


def fastest(work: Callable[[], object]) -> float:
    """Of what can be repeated in a second."""
    work()
    times, began = [], time.perf_counter()
    while time.perf_counter() - began < _SECONDS:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.quantiles(times, n=4)[0] if len(times) > 1 else times[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--child", choices=("small", "moved", "none"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.folder, arguments.threads, arguments.child)
        return
    print(machine())
    figures: dict[str, list[list[float]]] = {name: [] for name in VARIANTS}
    for _ in range(arguments.rounds):
        for name, (variables, how) in VARIANTS.items():
            command = [sys.executable, __file__, str(arguments.folder), "--threads", str(arguments.threads)]
            command += ["--child", how]
            told = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=True)
            figures[name].append(json.loads(told.stdout))
    base = np.array(figures["4 KiB pages"])
    rows = []
    for name, found in figures.items():
        best = np.min(found, axis=0)
        gains = np.median(base / np.maximum(found, 1e-12), axis=0)
        cells = [f"{best[place] * 1e3:.3f} ms ({gains[place]:.2f}x)" for place in range(4)]
        rows.append([name, *cells, f"{best[4] / 1e6:.0f} MB"])
    print_table(("variant", "step of 1", "step of 8", f"prompt of {PROMPT}", "opening", "on huge pages"), rows)


if __name__ == "__main__":
    main()
