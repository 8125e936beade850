"""What the benchmark scripts share: a subprocess's time and peak memory, medians, the machine's name. Knows no model."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path


@dataclass(frozen=True)
class Ended:
    """A finished subprocess: seconds of wall clock, peak resident bytes (file-backed pages included)."""

    seconds: float
    peak_bytes: int


def run_measured(*command: str) -> Ended:
    """Run a command; its output is shown only when it fails."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    shown = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{' '.join(command)} exited with {process.returncode}:\n{shown.decode(errors='replace')[-2000:]}")
    return Ended(time.perf_counter() - began, usage.ru_maxrss * 1024)


def aiasst(*arguments: str) -> Ended:
    """Run `aiasst ARGUMENTS` measured."""
    return run_measured(sys.executable, "-m", "aiasst", *arguments)


def interleaved(rounds: int, *work: Callable[[], float]) -> list[list[float]]:
    """Run every callable `rounds` times, A B A B ...; one list of its figures each. The machine stalls: compare within a round."""
    figures: list[list[float]] = [[] for _ in work]
    for _ in range(rounds):
        for own, function in zip(figures, work, strict=True):
            own.append(function())
    return figures


def summary(figures: Sequence[float], digits: int = 1) -> str:
    """Best and median of figures of speed."""
    return f"{max(figures):.{digits}f} (median {statistics.median(figures):.{digits}f})"


def machine() -> str:
    """CPU, cores and the versions that matter, to print beside every table."""
    from aiasst.profile import quick_config

    hardware = quick_config(None).hardware
    packages = ", ".join(f"{name} {version(name)}" for name in ("onnxruntime", "numpy"))
    flags = " ".join(
        sorted(set(hardware.instruction_sets) & {"avx2", "avx_vnni", "avx512_vnni", "amx_int8", "dotprod", "i8mm"})
    )
    return f"{hardware.cpu_model}, {hardware.usable_cores:g} cores, {flags}; Python {platform.python_version()}, {packages}"


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A Markdown table, so that it can be pasted where figures are kept."""
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


def folder_bytes(folder: Path) -> int:
    """Bytes of graph and weights of a model folder."""
    return sum(path.stat().st_size for path in folder.glob("model.onnx*"))
