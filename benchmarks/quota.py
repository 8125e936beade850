"""A quota of one core of several: what the profile decides against the runtime's own threads there, by real decode steps.

usage: quota.py FOLDER [--seconds 30] [--cores 0]

The quota is emulated by pinning the whole process to one core, which ONNX Runtime's own number of threads does not see when it is
told the machine's; a CPU quota of a control group stops the threads in turn and costs more.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from aiasst.artifacts.model_folder import ModelFolder
from aiasst.profile import quick_config
from aiasst.profile.tune import Setting, in_words, setting_of
from aiasst.profile.tune_work import Work
from measure import interleaved, machine, print_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cores", default="0", help="core numbers that are left, with commas")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 2, help="of the runtime, that knows nothing of it"
    )
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {int(core) for core in arguments.cores.split(",")})
    print(machine(), "pinned to", arguments.cores)
    folder = ModelFolder.open(arguments.folder)
    config = quick_config(folder)
    chosen, theirs = setting_of(config.decisions), Setting(arguments.threads)
    work = Work(folder, config.decisions, config.hardware)
    began = time.perf_counter()
    times = interleaved(arguments.rounds, lambda: 1 / work.measure(theirs), lambda: 1 / work.measure(chosen))
    rows = [(in_words(one), f"{max(rates):.2f}") for one, rates in zip((theirs, chosen), times, strict=True)]
    print_table(("setting", "work a second"), rows)
    ratio = max(times[1]) / max(times[0])
    print(f"the decided setting is {ratio:.2f} times as fast ({time.perf_counter() - began:.0f} s)")


if __name__ == "__main__":
    main()
