"""What is to be calibrated, how, and what that will take: put together before any of the work. Reads no weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from aiasst.artifacts.model_folder import ModelFolder, sha256_of
from aiasst.quantize import algorithms
from aiasst.quantize.algorithms import Algorithm
from aiasst.quantize.calibrate import estimate
from aiasst.quantize.calibrate.estimate import Estimate, LayerShape, Work
from aiasst.quantize.calibrate.layers import Layer, LayeredModel
from aiasst.quantize.calibrate.samples import Samples
from aiasst.quantize.calibrate.state import key_of
from aiasst.quantize.inventory import Inventory
from aiasst.quantize.matrix import Matrix
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
) -> Task:
    """Choose the size of a batch and know what the work will take.

    Raises:
        BudgetRefused: it takes more memory than `max_ram` bytes, whatever the batch.
    """
    module = algorithms.load(algorithm)
    work = _work(source, layered, inventory, plan, module, samples)
    needed = estimate.estimate(work, max_ram)
    key = key_of(
        {
            "source": _identity(source),
            "weights": {weight.matrix.name: weight.chosen.label for weight in plan.weights},
            "samples": [samples.sha256, *samples.ids.shape],
            "algorithm": algorithm,
            "batch": needed.sequences_at_once,
            "version": [__version__, _METHOD],
        }
    )
    costs = tuple(estimate.operations(work))
    return Task(source.model.graph, layered, inventory, plan, module, samples, needed, costs, key)


def _identity(source: QuantizeSource) -> str:
    """Hash that is another one when the weights are: of the manifest, which has theirs, or of what a foreign file shows."""
    if source.table is not None:
        return ModelFolder.open(source.folder).identity
    constants = (value.const_value for value in source.model.graph.initializers.values())
    files = {Path(tensor.path) for tensor in constants if isinstance(tensor, ir.ExternalTensor)}
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(files)]
    return key_of({"graph": sha256_of(source.graph_path), "files": facts})


def _work(
    source: QuantizeSource,
    layered: LayeredModel,
    inventory: Inventory,
    plan: Plan,
    algorithm: Algorithm,
    samples: Samples,
) -> Work:
    matrices = {found.matrix.name: found.matrix for found in inventory.found}
    sequences, length = samples.ids.shape
    hidden = source.shape.hidden_size if source.shape else max((m.k for m in matrices.values()), default=1)
    return Work(
        layers=tuple(_shape_of(layer, layered, matrices) for layer in layered.layers),
        sequences=sequences,
        length=length,
        hidden=hidden,
        heads=source.shape.heads if source.shape else max(1, hidden // 64),
        need=algorithm.NEEDS,
        compares=algorithm.PROPAGATES,
        folder_bytes=plan.bytes_after,
    )


def _shape_of(layer: Layer, layered: LayeredModel, matrices: dict[str, Matrix]) -> LayerShape:
    """A layer in numbers; the last group of the model is only rounded, since nobody runs what comes behind it."""
    read = _known(layer.weights, matrices)
    rounded = [m for group in layer.groups for m in _known(group.weights, matrices)]
    head = layered.layers[-1].groups[-1:] if layer is layered.layers[-1] else ()
    unread = {name for group in head for name in group.weights}
    return LayerShape(
        run=tuple(m for m in read if m.multiplies and not m.looks_up and m.name not in unread),
        rounded=tuple(rounded),
        lookups=tuple(m for m in read if m.looks_up),
        groups=tuple(
            next(m.k for m in _known(g.weights, matrices)) for g in layer.groups if _known(g.weights, matrices)
        ),
    )


def _known(names: Iterable[str], matrices: dict[str, Matrix]) -> list[Matrix]:
    return [matrices[name] for name in names if name in matrices]
