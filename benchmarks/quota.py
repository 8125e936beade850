"""A quota of one core of several: what the profile decides against the runtime's own threads there, by real decode steps.

usage: quota.py FOLDER [--quota 1.0] [--rounds 7]      a CPU quota of a control group of its own (needs root)
       quota.py FOLDER --cores 0                       the whole process pinned to core 0 instead

ONNX Runtime's own number of threads sees neither: it is told the machine's. A quota lets all of them run and then stops all of
them for the rest of a tenth of a second; pinning makes them share one core.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aiasst.artifacts.model_folder import ModelFolder
from aiasst.profile import quick_config
from aiasst.profile.tune import Setting, in_words, setting_of
from aiasst.profile.tune_work import Work
from measure import interleaved, machine, print_table

_PERIOD = 100_000
"""Microseconds, as container runtimes set it."""
_ROOTS = (Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup"))
"""Version 1, version 2."""


@contextmanager
def quota(cores: float) -> Iterator[None]:
    """This process in a control group that may take so many cores' time.

    Raises:
        OSError: no control groups, or they may not be written.
    """
    root = next(root for root in _ROOTS if (root / "cgroup.procs").exists())
    group, time_ = root / f"aiasst-quota-{os.getpid()}", str(round(cores * _PERIOD))
    group.mkdir()
    try:
        if (group / "cpu.cfs_quota_us").exists():
            (group / "cpu.cfs_period_us").write_text(str(_PERIOD))
            (group / "cpu.cfs_quota_us").write_text(time_)
        else:
            (group / "cpu.max").write_text(f"{time_} {_PERIOD}")
        (group / "cgroup.procs").write_text(str(os.getpid()))
        yield
    finally:
        (root / "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()


@contextmanager
def pinned(cores: set[int]) -> Iterator[None]:
    """This process on these cores alone."""
    os.sched_setaffinity(0, cores)
    yield


def compare(folder: ModelFolder, theirs: Setting, rounds: int) -> None:
    config = quick_config(folder)
    chosen = setting_of(config.decisions)
    print(f"usable cores: {config.hardware.usable_cores:g}, quota: {config.hardware.cpu_quota}")
    print(f"decided: {in_words(chosen)}: {config.decisions.threads.reason}")
    work = Work(folder, config.decisions, config.hardware)
    began = time.perf_counter()
    times = interleaved(rounds, lambda: 1 / work.measure(theirs), lambda: 1 / work.measure(chosen))
    rows = [
        (in_words(one), f"{max(rates):.2f}", f"{sorted(rates)[len(rates) // 2]:.2f}")
        for one, rates in zip((theirs, chosen), times, strict=True)
    ]
    print_table(("setting", "work a second", "median"), rows)
    ratio = sorted(mine / other for other, mine in zip(*times, strict=True))
    print(
        f"the decided setting is {max(times[1]) / max(times[0]):.2f} times as fast by the best of {rounds} rounds, "
        f"{ratio[rounds // 2]:.2f} by the median of the rounds' ratios ({time.perf_counter() - began:.0f} s)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quota", type=float, default=1.0, help="cores' worth of time")
    parser.add_argument("--cores", help="core numbers that are left instead, with commas")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 2, help="of the runtime, that knows nothing of it"
    )
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    print(machine())
    cores = arguments.cores
    with quota(arguments.quota) if cores is None else pinned({int(core) for core in cores.split(",")}):
        compare(ModelFolder.open(arguments.folder), Setting(arguments.threads), arguments.rounds)


if __name__ == "__main__":
    main()
