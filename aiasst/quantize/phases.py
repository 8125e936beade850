"""What the phases of a quantization take, and all of them together: memory, disk and time. Knows no graph and no weight.

    planning · calibration · writing · proof

Memory is the peak of the process's resident set, in which mapped pages of weights count; the phases follow each other, so the
peak of the whole is the largest of theirs. Time is counted in multiplications and additions, as a product of matrices makes them
on this machine: what numbers need that only pass by, or a factorization, is worth more of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

from aiasst.errors import BudgetRefused
from aiasst.sizes import human_bytes

FLOAT = 4
"""Bytes of a float32."""
A_NUMBER = 3000
"""Operations that the time is worth in which a number is read, rounded or summed up, and written: memory is slow."""
A_SESSION = 1e9
"""Operations that opening a session is worth."""

# The interpreter, numpy, torch, ONNX Runtime and a tokenizer, after their first use; the second is without torch.
_PROGRAM_BYTES, _PLAIN_PROGRAM_BYTES = 450 << 20, 260 << 20
# The system's allocator gives large arrays back and keeps the holes between smaller ones: more than is in use, up to this.
_HOLES, _MOST_HOLES = 1.3, 256 << 20
# What the terms leave out: indexes, names, buffers of files.
_SLACK = 1.08
# What a hint allows is told to four digits, and must not be less than what is needed.
_ROUNDED_UP = 1.001
# Sides of the matrices whose product is timed, and how often: short, so that a moment without other work is among them.
_SIDE, _TRIES = 384, 24


@dataclass(frozen=True)
class Phase:
    """A part of the work."""

    name: str
    """For people: calibration, proof, …"""
    memory: int
    """Bytes resident at the peak."""
    disk: int
    """Bytes on disk at the peak, the source left out."""
    runs: float
    """Operations of sessions, on the CPU."""
    algebra: float = 0.0
    """Operations of torch, on a GPU where there is one."""
    remedy: str = ""
    """What makes it take less memory."""


@dataclass(frozen=True)
class Speed:
    """Operations a second."""

    runs: float
    algebra: float

    @classmethod
    def of_torch(cls) -> Speed:
        """Of this machine, with the threads that torch has now."""
        import torch

        from aiasst.quantize.hessian import device

        factor = torch.ones(_SIDE, _SIDE)
        runs = _best(lambda: torch.mm(factor, factor))
        there = factor.to(device())
        return cls(runs, runs if there.device.type == "cpu" else _best(lambda: torch.mm(there, there).cpu()))


@dataclass(frozen=True)
class Estimate:
    """What the work will take."""

    phases: tuple[Phase, ...]
    sequences_at_once: int = 1
    """Of the calibration's text, through a layer."""

    @property
    def memory(self) -> int:
        """Bytes at the peak."""
        return self._largest.memory

    @property
    def disk(self) -> int:
        """Bytes at the peak, the new folder included."""
        return max(phase.disk for phase in self.phases)

    @property
    def seconds(self) -> float:
        """On this machine, when nothing else runs on it."""
        return sum(_seconds(phase, machine()) for phase in self.phases)

    @property
    def summary(self) -> str:
        """One line for people."""
        parts = [f"{phase.name} {_duration(_seconds(phase, machine()))}" for phase in self.phases]
        took = f"{_duration(self.seconds)}: {', '.join(parts)}" if len(parts) > 1 else parts[0]
        return f"about {human_bytes(self.memory)} of memory, {human_bytes(self.disk)} of disk and {took}"

    def refuse(self, max_ram: int | None) -> None:
        """Raise BudgetRefused where a phase would take more than `max_ram` bytes of memory."""
        needed, phase = self.memory, self._largest
        if max_ram is not None and needed > max_ram:
            raise BudgetRefused(
                f"the {phase.name} of this model takes about {human_bytes(needed)} of memory, {human_bytes(max_ram)} are allowed",
                f"allow {human_bytes(_ROUNDED_UP * needed, exact=True)}"
                + (f", or {phase.remedy}" if phase.remedy else ""),
            )

    @property
    def _largest(self) -> Phase:
        return max(self.phases, key=lambda phase: phase.memory)


@cache
def machine() -> Speed:
    """Of this machine, measured once."""
    return Speed.of_torch()


@dataclass(frozen=True)
class Moment:
    """Bytes of the arrays that are in use at once."""

    lasting: float
    """Weights and other large matrices, which go back to the system as they are."""
    passing: float = 0.0
    """Activations that come and go, and leave holes behind."""


def peak(moments: Iterable[Moment], *, torch: bool = True) -> int:
    """Bytes resident at the peak of some moments of one phase."""
    known = list(moments)
    program = _PROGRAM_BYTES if torch else _PLAIN_PROGRAM_BYTES
    holes = min(_HOLES * max(moment.passing for moment in known), _MOST_HOLES)
    return program + int(holes + _SLACK * max(moment.lasting + moment.passing for moment in known))


def _best(product: Callable[[], object]) -> float:
    """Operations a second of the fastest of some products."""
    return 2 * _SIDE**3 / min(_timed(product) for _ in range(_TRIES))


def _timed(product: Callable[[], object]) -> float:
    begin = time.perf_counter()
    product()
    return max(time.perf_counter() - begin, 1e-7)


def _seconds(phase: Phase, speed: Speed) -> float:
    return phase.runs / speed.runs + phase.algebra / speed.algebra


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
