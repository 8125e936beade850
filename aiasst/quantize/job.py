"""One quantization from beginning to end: open, plan, write, check. Composes the stage's parts and does no work of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from aiasst.artifacts.model_folder import (
    GRAPH_NAME,
    WEIGHTS_NAME,
    Calibration,
    Manifest,
    ModelFolder,
    Quantization,
    Weight,
    copy_travelling_files,
    record_files,
    refuse_existing,
    require_free_disk,
    staged_folder,
    write_manifest,
)
from aiasst.artifacts.recipe import Recipe
from aiasst.errors import ArtifactError
from aiasst.progress import Progress, ProgressFn, silent
from aiasst.quantize import algorithms
from aiasst.quantize.calibrate.contents import PlainContents
from aiasst.quantize.calibrate.samples import Samples, load_samples
from aiasst.quantize.check import check_runs
from aiasst.quantize.inventory import Inventory, take_inventory
from aiasst.quantize.plan import Plan, PlannedWeight, make_plan
from aiasst.quantize.rewrite import rewrite
from aiasst.quantize.source import QuantizeSource, open_source
from aiasst.quantize.weights_file import WeightsFile
from aiasst.version import __version__

# Besides the weights: the graph, the manifest, tokenizer files.
_SPARE_BYTES = 32 << 20


@dataclass(frozen=True)
class Job:
    """A source, what is in it, and the plan for it."""

    source: QuantizeSource
    inventory: Inventory
    plan: Plan
    algorithm: algorithms.Algorithm
    samples: Samples | None

    @classmethod
    def prepare(cls, source: Path | str | ModelFolder, recipe: Recipe, calibration: Path | str | None) -> Job:
        """Open and plan, reading no weights. Raises ArtifactError where source, recipe or calibration file is unfit."""
        algorithm = algorithms.load(recipe.algorithm)
        samples = None if calibration is None else load_samples(calibration)
        opened = open_source(source)
        inventory = take_inventory(opened.model.graph, opened.table)
        if not inventory.found:
            raise ArtifactError(
                f"{opened.graph_path} has no weight that could be quantized",
                "float32 constants of MatMul, Gemm or Gather are what is quantized",
            )
        return cls(opened, inventory, _plan(opened, inventory, recipe), algorithm, samples)

    def write(
        self, output: Path | str | None = None, *, force: bool = False, progress: ProgressFn = silent
    ) -> ModelFolder:
        """Write the quantized folder, whole or not at all. A Job writes once: its graph is changed in place."""
        destination = self._destination(output)
        if self.source.graph_path.resolve().is_relative_to(destination.resolve()):
            raise ArtifactError(f"{destination} holds the source itself", "choose another destination with -o")
        refuse_existing(destination, force=force)
        require_free_disk(destination, self.plan.bytes_after + _SPARE_BYTES)
        with staged_folder(destination, force=force) as staging:
            self._fill(staging, progress)
        return ModelFolder.open(destination)

    def _destination(self, output: Path | str | None) -> Path:
        if output is not None:
            return Path(output)
        return self.source.beside / f"{self.source.name}-{self.plan.recipe.name}"

    def _fill(self, staging: Path, progress: ProgressFn) -> None:
        model = self.source.model
        others = other_rows(self.source, self.inventory)
        with WeightsFile(staging / WEIGHTS_NAME) as file:
            rewrite(
                model.graph,
                self.inventory.found,
                self.plan,
                PlainContents(self.plan, self.algorithm),
                file,
                progress=progress,
            )
        ir.save(model, staging / GRAPH_NAME)
        progress(Progress("check", 0, 1, "running a few tokens"))
        check_runs(staging / GRAPH_NAME, self.source.graph_path)
        progress(Progress("check", 1, 1))
        copy_travelling_files(self.source.folder, staging)
        write_manifest(staging, self._manifest(staging, others))

    def _manifest(self, staging: Path, others: dict[str, Weight]) -> Manifest:
        planned = {w.matrix.name: _row(w) for w in self.plan.weights}
        shared = {name: _share(row, planned) for name, row in others.items()}
        return Manifest(
            aiasst_version=__version__,
            task=self.source.task,
            exporter=self.source.exporter,
            source=self.source.source,
            shape=self.source.shape,
            tokens=self.source.tokens,
            weights=planned | shared,
            quantization=Quantization(
                recipe=self.plan.recipe.name,
                algorithm=self.plan.recipe.algorithm,
                calibration=self._calibration(),
                bits_per_weight=round(self.plan.bits_per_weight, 4),
            ),
            files=record_files(staging),
        )

    def _calibration(self) -> Calibration | None:
        if self.samples is None:
            return None
        sequences, length = self.samples.ids.shape
        used = self.algorithm.NEEDS != "nothing"
        return Calibration(name=self.samples.name, sequences=sequences, tokens=sequences * length, used=used)


def _plan(source: QuantizeSource, inventory: Inventory, recipe: Recipe) -> Plan:
    others = other_rows(source, inventory)
    named = {found.matrix.name for found in inventory.found} | others.keys()
    constants = source.model.graph.initializers.values()
    unnamed = sum(v.const_value.nbytes for v in constants if v.const_value is not None and v.name not in named)
    return make_plan(
        recipe,
        [found.matrix for found in inventory.found],
        layers=source.shape.layers if source.shape else inventory.layers,
        opset=source.opset,
        others=others,
        table_bytes=unnamed,
        left_alone=inventory.left_alone,
    )


def other_rows(source: QuantizeSource, inventory: Inventory) -> dict[str, Weight]:
    """Rows of the weight table beside the matrices that are planned: the manifest's, or a foreign graph's float tensors."""
    planned = {found.matrix.name for found in inventory.found}
    if source.table is not None:
        return {name: row for name, row in source.table.items() if name not in planned}
    return {
        name: _foreign_row(value.const_value)
        for name, value in source.model.graph.initializers.items()
        if name not in planned and value.const_value is not None and value.const_value.dtype.is_floating_point()
    }


def _foreign_row(tensor: ir.TensorProtocol) -> Weight:
    shape = tuple(int(d) for d in tensor.shape.numpy())
    return Weight(role="other", layer=None, shape=shape, format=tensor.dtype.name.lower(), bytes=tensor.nbytes)


def _row(planned: PlannedWeight) -> Weight:
    matrix = planned.matrix
    return Weight(
        role=matrix.role,
        layer=matrix.layer,
        shape=(matrix.n, matrix.k) if matrix.looks_up else (matrix.k, matrix.n),
        format=planned.chosen.label,
        bytes=planned.bytes_after,
    )


def _share(row: Weight, planned: dict[str, Weight]) -> Weight:
    """A row that shares another's bytes takes over its format."""
    if row.shared_with is None or row.shared_with not in planned:
        return row
    return row.model_copy(update={"format": planned[row.shared_with].format})
