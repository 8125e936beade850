"""How a session is opened: our few settings, and what ONNX Runtime is told for them. Knows no graph."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

import onnxruntime as ort

from aiasst.artifacts.device import Decisions

_ERRORS_ONLY = 3
_X86 = frozenset({"x86_64", "amd64", "i386", "i686", "x86"})


@dataclass(frozen=True)
class SessionSettings:
    """What a session runs on."""

    provider: str = "cpu"
    """Name of a module in `providers/`."""
    threads: int = 0
    """0: ONNX Runtime decides (one a physical core)."""
    affinity: tuple[int, ...] | None = None
    """Logical core numbers from 0, one a thread; None: the system places the threads."""
    prepack: bool = True
    """Whether weights are copied into the kernels' own order at load. Without it a floating-point graph takes half the memory
    and runs a little slower: right for a graph that runs once. Never without it where weights are quantized (160 x slower)."""
    arena: bool = True
    """Whether memory of intermediate results is kept for the next run, rounded up generously, and as long as an output lives.
    Without it a layer that runs large batches takes a third of the memory (1.1 instead of 3.4 GB) at the same speed."""
    spins: bool = True
    """Whether several threads wait awake between two products of a run; a thread alone has nobody to wait for."""
    rests: bool = False
    """Whether its threads sleep as soon as a run ends, instead of waiting awake for the next: right for a session that runs now and
    then beside another one, whose threads would find the cores taken."""
    profile: Path | None = None
    """What a profile's file begins with (ONNX Runtime adds the time and .json); None: no profiler, which slows every node."""


def settings_from(decisions: Decisions, *, rests: bool = False) -> SessionSettings:
    """The settings that a device config decided on; `rests` as in `SessionSettings`."""
    return SessionSettings(
        decisions.provider.value,
        decisions.threads.value,
        decisions.affinity.value,
        spins=decisions.spinning.value,
        rests=rests,
    )


def session_options(settings: SessionSettings) -> ort.SessionOptions:
    """ONNX Runtime's options for `settings`."""
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    threads = settings.threads or len(settings.affinity or ())
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    if settings.profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(settings.profile)
    if not settings.prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    options.enable_cpu_mem_arena = options.enable_mem_pattern = settings.arena
    # A decode step is a chain of short products: threads that sleep between them cost more than they save.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if settings.spins and threads != 1 else "0")
    if settings.rests:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    if affinities := thread_affinities(threads, settings.affinity):
        options.add_session_config_entry("session.intra_op_thread_affinities", affinities)
    if products_saturate():
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def thread_affinities(threads: int, affinity: tuple[int, ...] | None) -> str:
    """ONNX Runtime's text for pinning: "2;3" for all threads but the first, which is the caller's; cores count from 1."""
    if not affinity or threads < 2:
        return ""
    # More threads than cores share the cores in turn.
    return ";".join(str(affinity[thread % len(affinity)] + 1) for thread in range(1, threads))


def products_saturate(machine: str | None = None, cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether uint8 x int8 products overflow their 16-bit sums here: x86 without VNNI (vpmaddubsw saturates).

    Where the instruction sets cannot be read, an x86 is taken for one without: slower perhaps, never wrong.
    """
    if (machine or platform.machine()).lower() not in _X86:
        return False
    if not cpuinfo.is_file():
        return True
    return "vnni" not in cpuinfo.read_text(errors="replace")
