"""What is to be calibrated, how, and what that will take: put together before any of the work. Reads no weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from aiasst.artifacts.model_folder import ModelFolder, sha256_of
from aiasst.quantize import algorithms, formats
from aiasst.quantize.algorithms import Algorithm
from aiasst.quantize.calibrate import estimate
from aiasst.quantize.calibrate.estimate import Work
from aiasst.quantize.calibrate.layers import LayeredModel
from aiasst.quantize.calibrate.samples import Samples
from aiasst.quantize.calibrate.shapes import ModelShape, shape_of
from aiasst.quantize.calibrate.state import key_of
from aiasst.quantize.inventory import Inventory
from aiasst.quantize.phases import Estimate, Phase
from aiasst.quantize.plan import Plan
from aiasst.quantize.source import QuantizeSource
from aiasst.version import __version__

# Counts up whenever the same settings would give other bytes.
_METHOD = 1


@dataclass(frozen=True)
class Task:
    """A calibration, ready to begin."""

    graph: ir.Graph
    layered: LayeredModel
    inventory: Inventory
    plan: Plan
    algorithm: Algorithm
    samples: Samples
    estimate: Estimate
    costs: tuple[float, ...]
    """Share of the time that each layer takes, in operations."""
    key: str
    """Of everything that the result depends on."""


def prepare_task(
    source: QuantizeSource,
    layered: LayeredModel,
    inventory: Inventory,
    plan: Plan,
    algorithm: str,
    samples: Samples,
    max_ram: int | None,
    after: Sequence[Phase] = (),
    *,
    beside: str = "",
    title: str = "calibration",
) -> Task:
    """Choose the size of a batch and know what the work will take, the phases `after` the calibration included.

    `beside` is the key of a calibration whose results this one begins with; `title` names this one for people.

    Raises:
        BudgetRefused: it takes more memory than `max_ram` bytes, whatever the batch.
    """
    module = algorithms.load(algorithm)
    work = work_of(shape_of(source, layered, inventory), plan, module, samples)
    needed = estimate.estimate(work, after, max_ram, title)
    key = key_of(
        {
            "source": _identity(source),
            "weights": {weight.matrix.name: weight.chosen.label for weight in plan.weights},
            "samples": [samples.sha256, *samples.ids.shape],
            "algorithm": algorithm,
            "batch": needed.sequences_at_once,
            "version": [__version__, _METHOD],
        }
        | ({"beside": beside} if beside else {})
    )
    costs = tuple(runs + algebra for runs, algebra in estimate.operations(work))
    return Task(source.model.graph, layered, inventory, plan, module, samples, needed, costs, key)


def work_of(shape: ModelShape, plan: Plan, algorithm: Algorithm, samples: Samples) -> Work:
    """The calibration of `plan` in numbers."""
    sequences, length = samples.ids.shape
    return Work(
        shape,
        sequences=sequences,
        length=length,
        need=algorithm.NEEDS,
        compares=algorithm.PROPAGATES,
        grids={weight.matrix.name: formats.load(weight.chosen.format).grid(weight.chosen) for weight in plan.weights},
    )


def _identity(source: QuantizeSource) -> str:
    """Hash that is another one when the weights are: of the manifest, which has theirs, or of what a foreign file shows."""
    if source.table is not None:
        return ModelFolder.open(source.folder).identity
    constants = (value.const_value for value in source.model.graph.initializers.values())
    files = {Path(tensor.path) for tensor in constants if isinstance(tensor, ir.ExternalTensor)}
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(files)]
    return key_of({"graph": sha256_of(source.graph_path), "files": facts})
