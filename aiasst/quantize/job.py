"""One quantization from beginning to end: round, pack, write, check. Composes the stage's parts and does no work of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx_ir as ir

from aiasst.artifacts.document import write_text_atomically
from aiasst.artifacts.model_folder import (
    GRAPH_NAME,
    WEIGHTS_NAME,
    CacheQuantization,
    Calibration,
    Manifest,
    ModelFolder,
    Quantization,
    Weight,
    copy_travelling_files,
    disk_errors,
    record_files,
    refuse_existing,
    require_free_disk,
    staged_folder,
    write_manifest,
)
from aiasst.errors import ArtifactError, BudgetRefused
from aiasst.progress import Progress, ProgressFn, silent
from aiasst.quantize import algorithms
from aiasst.quantize.cache.nodes import quantize_caches
from aiasst.quantize.calibrate.contents import Contents, PlainContents
from aiasst.quantize.calibrate.samples import Samples
from aiasst.quantize.calibrate.state import WorkState, work_folder
from aiasst.quantize.check import check_runs
from aiasst.quantize.heap import give_back
from aiasst.quantize.planning.mix import recipe_yaml
from aiasst.quantize.preparation import Prepared
from aiasst.quantize.proof import Proof
from aiasst.quantize.rewrite import rewrite
from aiasst.quantize.tables import other_rows, planned_rows
from aiasst.quantize.weights_file import WeightsFile
from aiasst.version import __version__

_RECIPE_NAME = "recipe.yaml"
# Besides the weights: the graph, the manifest, tokenizer files.
_SPARE_BYTES = 32 << 20


@dataclass(frozen=True)
class Job:
    """A quantization that was prepared; it writes once, since the graph is changed in place."""

    prepared: Prepared

    def write(self, *, force: bool = False, progress: ProgressFn = silent) -> ModelFolder:
        """Write the quantized folder, whole or not at all."""
        destination = self.prepared.destination
        if self.prepared.source.graph_path.resolve().is_relative_to(destination.resolve()):
            raise ArtifactError(f"{destination} holds the source itself", "choose another destination with -o")
        refuse_existing(destination, force=force)
        require_free_disk(destination, self._disk() + _SPARE_BYTES)
        # The float graph in layers, before it is rewritten.
        proof = Proof.begin(self.prepared)
        with self._kept_until_written() as state:
            contents = self._contents(state, progress)
            give_back()
            with staged_folder(destination, force=force) as staging:
                self._fill(staging, contents, progress)
                give_back()
                proof.write(staging, progress)
        return ModelFolder.open(destination)

    def _disk(self) -> int:
        return self.prepared.plan.bytes_after if self.prepared.task is None else self.prepared.task.estimate.disk

    @contextmanager
    def _kept_until_written(self) -> Iterator[WorkState | None]:
        """The work folder of a calibration: it survives a failure of the machine, not a refusal nor success."""
        if self.prepared.task is None:
            yield None
            return
        with disk_errors(self.prepared.destination):
            self.prepared.destination.parent.mkdir(parents=True, exist_ok=True)
            state = WorkState.open(work_folder(self.prepared.destination), self.prepared.task.key)
        try:
            yield state
        except BudgetRefused:
            state.remove()
            raise
        state.remove()

    def _contents(self, state: WorkState | None, progress: ProgressFn) -> Contents:
        if self.prepared.task is None or state is None:
            return PlainContents(self.prepared.plan, algorithms.load(self.prepared.plan.recipe.algorithm))
        # Brings torch, which the other algorithms do without.
        from aiasst.quantize.calibrate.loop import STAGE, calibrate

        if state.begun_anew:
            progress(Progress(STAGE, 0, 0, "the settings or the weights have changed: beginning anew"))
        return calibrate(self.prepared.task, state, progress)

    def _fill(self, staging: Path, contents: Contents, progress: ProgressFn) -> None:
        model = self.prepared.source.model
        self._quantize_caches([model.graph], staging, progress)
        others = other_rows(self.prepared.source, self.prepared.inventory)
        with WeightsFile(staging / WEIGHTS_NAME) as file:
            rewrite(model.graph, self.prepared.inventory.found, self.prepared.plan, contents, file, progress=progress)
        ir.save(model, staging / GRAPH_NAME)
        progress(Progress("check", 0, 1, "running a few tokens"))
        check_runs(staging / GRAPH_NAME, self.prepared.source.graph_path)
        progress(Progress("check", 1, 1))
        copy_travelling_files(self.prepared.source.folder, staging)
        write_text_atomically(staging / _RECIPE_NAME, recipe_yaml(self.prepared.plan.recipe))
        write_manifest(staging, self._manifest(staging, others))

    def _quantize_caches(self, graphs: Sequence[ir.Graph], staging: Path, progress: ProgressFn) -> None:
        """Give `graphs` of one model int8 caches of the same scales, where they were asked for."""
        if self.prepared.cache is None:
            return
        # Below the staging folder, which vanishes with all that a failure leaves.
        with TemporaryDirectory(prefix="cache-", dir=staging) as work:
            scales = self.prepared.cache.scales(Path(work), progress)
        for graph in graphs:
            quantize_caches(graph, scales)
        give_back()

    def _manifest(self, staging: Path, others: dict[str, Weight]) -> Manifest:
        return Manifest(
            aiasst_version=__version__,
            task=self.prepared.source.task,
            exporter=self.prepared.source.exporter,
            source=self.prepared.source.source,
            shape=self.prepared.source.shape,
            tokens=self.prepared.source.tokens,
            weights=planned_rows(self.prepared.plan, others),
            quantization=Quantization(
                recipe=self.prepared.plan.recipe.name,
                algorithm=self.prepared.plan.recipe.algorithm,
                calibration=self._calibration(),
                bits_per_weight=round(self.prepared.plan.bits_per_weight, 4),
                cache=self._cache(),
            ),
            files=record_files(staging),
        )

    def _calibration(self) -> Calibration | None:
        if self.prepared.samples is None:
            return None
        return _record(self.prepared.samples, used=self.prepared.task is not None)

    def _cache(self) -> CacheQuantization | None:
        cache = self.prepared.cache
        if cache is None:
            return None
        return CacheQuantization(format="int8", scales="per-channel", calibration=_record(cache.samples, used=True))


def _record(samples: Samples, *, used: bool) -> Calibration:
    sequences, length = samples.ids.shape
    return Calibration(
        name=samples.name,
        sequences=sequences,
        tokens=sequences * length,
        seed=samples.seed,
        sha256=samples.sha256,
        used=used,
    )
