"""What a calibration will take: memory, disk and time, from shapes alone, before any of the work. Knows no graph and no weights.

Memory is the peak of the process's resident set, in which mapped pages of the weights count. Three phases are looked at: a
session that runs a batch through a layer, the statistics of a group while it does, and the rounding of that group's weights.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aiasst.errors import BudgetRefused
from aiasst.quantize.algorithms import Need
from aiasst.quantize.matrix import Matrix
from aiasst.sizes import human_bytes

_FLOAT = 4
# The interpreter, numpy, torch, ONNX Runtime and a tokenizer, after their first use.
_PROGRAM_BYTES = 400 << 20
_PLAIN_PROGRAM_BYTES = 160 << 20
# What the allocators hold beyond what was asked of them.
_SLACK = 1.1
# The weights of a layer in a session: as they lie, and packed for the kernels.
_SESSION_COPIES = 2
# Matrices [K, K], with the statistics: while they are gathered, as targets are corrected (with the float chain's), as an
# algorithm factorizes.
_GATHERED, _CORRECTING, _FACTORIZING = 1, 6.5, 5
# Copies of a piece of a weight as its target is corrected, and as an algorithm rounds it.
_PIECE_TARGET_COPIES, _PIECE_ROUNDING_COPIES = 4, 10
# How often a layer is run a chain: up to each of its groups, and to its end.
_FLOAT_RUNS, _QUANTIZED_RUNS = 1.0, 2.5
# The finished folder in a session: mapped, and packed for the kernels.
_OPENED_COPIES = 2
# A weight that is rounded by itself: mapped, its values, and packed for the file.
_PLAIN_BYTES = 4 + 1 + 1

MOST_TOKENS = 4096
"""Tokens of a batch: more make the products no faster."""
PIECE_ELEMENTS = 1 << 24
"""Numbers of a weight that are worked on at once: 64 MB of float32, of which an algorithm makes a dozen copies."""


@dataclass(frozen=True)
class LayerShape:
    """One layer in numbers."""

    run: tuple[Matrix, ...]
    """Weights of the products that a session runs."""
    rounded: tuple[Matrix, ...]
    """Weights that are rounded: the same, and a head, which no session has to run."""
    lookups: tuple[Matrix, ...]
    """Embeddings, of which a few rows are read."""
    groups: tuple[int, ...]
    """Width K of the input of each group that is calibrated."""


@dataclass(frozen=True)
class Work:
    """All that the estimate depends on."""

    layers: tuple[LayerShape, ...]
    sequences: int
    length: int
    hidden: int
    """Width of what passes from layer to layer."""
    heads: int
    need: Need
    compares: bool
    """Whether the float chain's inputs are kept beside the quantized chain's."""
    folder_bytes: int
    """Size of the folder to write."""


@dataclass(frozen=True)
class Estimate:
    """What it will take."""

    memory: int
    """Bytes at the peak."""
    disk: int
    """Bytes at the peak, the new folder included."""
    seconds: float
    sequences_at_once: int

    @property
    def summary(self) -> str:
        """One line for people."""
        minutes = self.seconds / 60
        took = f"{minutes:.0f} min" if minutes >= 1 else f"{self.seconds:.0f} s"
        return f"calibration: about {human_bytes(self.memory)} of memory, {human_bytes(self.disk)} of disk, {took}"


def estimate(work: Work, max_ram: int | None = None) -> Estimate:
    """What `work` takes with the largest batch that keeps it under `max_ram` bytes.

    The batch depends on the arguments alone, since the order of sums, and with it the last bit of the result, depends on it.

    Raises:
        BudgetRefused: even one sequence at a time takes more.
    """
    batch = max(1, min(work.sequences, MOST_TOKENS // work.length))
    while batch > 1 and max_ram is not None and memory(work, batch) > max_ram:
        batch //= 2
    needed = memory(work, batch)
    if max_ram is not None and needed > max_ram:
        raise BudgetRefused(
            f"calibrating this model takes about {human_bytes(needed)} of memory, {human_bytes(max_ram)} are allowed",
            f"allow {human_bytes(needed)}, give a calibration file of shorter sequences than {work.length} tokens, or use "
            "--algorithm mse, which looks at no text",
        )
    return Estimate(needed, disk(work), sum(operations(work)) / _operations_per_second(), batch)


def memory(work: Work, batch: int) -> int:
    """Bytes resident at the peak with `batch` sequences at once."""
    peak = max(max(_running(work, layer, batch), _rounding(work, layer)) for layer in work.layers)
    matrices = [matrix for layer in work.layers for matrix in (*layer.rounded, *layer.lookups)]
    return _PROGRAM_BYTES + int(_SLACK * max(peak, _writing(matrices, work.folder_bytes)))


def plain_memory(matrices: Sequence[Matrix], folder_bytes: int) -> int:
    """Bytes resident at the peak when every weight is rounded by itself."""
    return _PLAIN_PROGRAM_BYTES + int(_SLACK * _writing(matrices, folder_bytes))


def refuse_plain(matrices: Sequence[Matrix], folder_bytes: int, max_ram: int | None) -> None:
    """Raise BudgetRefused where rounding each weight by itself would take more than `max_ram` bytes."""
    needed = plain_memory(matrices, folder_bytes)
    if max_ram is not None and needed > max_ram:
        raise BudgetRefused(
            f"quantizing this model takes about {human_bytes(needed)} of memory, {human_bytes(max_ram)} are allowed",
            f"allow {human_bytes(needed)}, or choose a recipe of fewer bits: the result is opened once to see that it runs",
        )


def _writing(matrices: Sequence[Matrix], folder_bytes: int) -> float:
    """Packing the largest weight, or opening the written folder."""
    largest = max((matrix.elements for matrix in matrices), default=0)
    return max(_PLAIN_BYTES * largest, _OPENED_COPIES * folder_bytes)


def disk(work: Work) -> int:
    """Bytes on disk at the peak: boundaries of both chains, the inputs of a layer's groups, finished weights, the new folder."""
    tokens = work.sequences * work.length
    boundaries = 2 * 2 * tokens * work.hidden * _FLOAT
    staged = tokens * _FLOAT * max(sum(layer.groups) for layer in work.layers) if work.compares else 0
    finished = sum(matrix.elements for layer in work.layers for matrix in (*layer.rounded, *layer.lookups))
    looked_up = _FLOAT * sum(matrix.elements for layer in work.layers for matrix in layer.lookups)
    return boundaries + staged + int(1.1 * finished) + looked_up + work.folder_bytes


def operations(work: Work) -> list[float]:
    """Floating-point operations of each layer: what its share of the time follows from."""
    return [_operations(work, layer) for layer in work.layers]


def _running(work: Work, layer: LayerShape, batch: int) -> float:
    """A session of the layer with a batch in it, and the statistics it is run for."""
    weights = _SESSION_COPIES * _FLOAT * sum(matrix.elements for matrix in layer.run)
    # In the quantized chain the weights are arrays of their own, beside the mapped originals of those that are not rounded yet.
    replaced = _FLOAT * sum(matrix.elements for matrix in layer.run)
    tokens = batch * work.length
    widths = sum(matrix.n + matrix.k for matrix in layer.run) + 4 * work.hidden
    scores = work.heads * work.length * tokens if layer.groups else 0
    activations = 2 * _FLOAT * (tokens * widths + scores)
    return weights + replaced + activations + _squares(work, layer, _GATHERED * (2 if work.compares else 1))


def _rounding(work: Work, layer: LayerShape) -> float:
    """The weights of one group on their way to the grid, with those of the layer that are done."""
    done = _FLOAT * sum(matrix.elements for matrix in layer.run)
    largest = max((matrix.elements for matrix in (*layer.rounded, *layer.lookups)), default=0)
    piece = _FLOAT * min(largest, PIECE_ELEMENTS)
    target = _squares(work, layer, _CORRECTING) + _PIECE_TARGET_COPIES * piece if work.compares else 0
    rounding = _squares(work, layer, _FACTORIZING) + _PIECE_ROUNDING_COPIES * piece
    return done + 1.1 * largest + max(target, rounding)


def _squares(work: Work, layer: LayerShape, count: float) -> float:
    """Bytes of `count` matrices [K, K] of the widest group."""
    if work.need != "hessian" or not layer.groups:
        return 0
    return count * _FLOAT * max(layer.groups) ** 2


def _operations(work: Work, layer: LayerShape) -> float:
    tokens = work.sequences * work.length
    runs = _QUANTIZED_RUNS + _FLOAT_RUNS
    count = runs * 2 * tokens * sum(matrix.elements for matrix in layer.run)
    if work.need == "hessian":
        kept = 2 if work.compares else 1
        count += sum(kept * 2 * tokens * k**2 + 4 * k**3 for k in layer.groups)
        count += sum(4 * matrix.elements * matrix.k for matrix in layer.rounded)
    # Reading, rounding and writing a number takes as long as some dozens of operations in a product.
    return count + 200 * sum(matrix.elements for matrix in (*layer.rounded, *layer.lookups))


def _operations_per_second() -> float:
    """What a product of this machine makes, measured for a moment."""
    size = 512
    factor = np.ones((size, size), dtype=np.float32)
    best = min(_timed(factor) for _ in range(4))
    return 2 * size**3 / best


def _timed(factor: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> float:
    begin = time.perf_counter()
    factor @ factor
    return max(time.perf_counter() - begin, 1e-6)


def total(values: Sequence[float]) -> float:
    """Sum that is never zero, to divide by."""
    return max(sum(values), 1.0)
