"""One quantization from beginning to end: round, pack, write, check. Composes the stage's parts and does no work of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx_ir as ir

from aiasst.artifacts.document import write_text_atomically
from aiasst.artifacts.model_folder import (
    GRAPH_NAME,
    TWIN_GRAPH_NAME,
    TWIN_WEIGHTS_NAME,
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
from aiasst.artifacts.model_folder import Twin as TwinRecord
from aiasst.errors import ArtifactError, BudgetRefused
from aiasst.progress import Progress, ProgressFn, silent
from aiasst.quantize import algorithms
from aiasst.quantize.cache.nodes import quantize_caches
from aiasst.quantize.calibrate.contents import Contents, PlainContents
from aiasst.quantize.calibrate.samples import Samples
from aiasst.quantize.calibrate.state import WorkState, work_folder
from aiasst.quantize.check import check_runs
from aiasst.quantize.heap import give_back
from aiasst.quantize.plan import Plan
from aiasst.quantize.planning.mix import recipe_yaml
from aiasst.quantize.preparation import Prepared
from aiasst.quantize.proof import Proof
from aiasst.quantize.rephrase import rephrase
from aiasst.quantize.rewrite import rewrite
from aiasst.quantize.tables import other_rows, planned_rows
from aiasst.quantize.twin import RECIPE as TWIN_RECIPE
from aiasst.quantize.twin import Twin, TwinContents, shared_names, twin_rows
from aiasst.quantize.weights_file import WeightsFile
from aiasst.version import __version__

_RECIPE_NAME = "recipe.yaml"
_TWIN_WORK = "twin"
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
            second = self._second_contents(contents, state, progress)
            give_back()
            with staged_folder(destination, force=force) as staging:
                self._fill(staging, contents, second, progress)
                give_back()
                proof.write(staging, progress)
        return ModelFolder.open(destination)

    def _disk(self) -> int:
        if self.prepared.task is not None:
            return self.prepared.task.estimate.disk
        twin = self.prepared.twin
        return self.prepared.plan.bytes_after + (0 if twin is None else twin.plan.bytes_after)

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

    def _second_contents(self, first: Contents, state: WorkState | None, progress: ProgressFn) -> TwinContents | None:
        """The weights of the second form; its calibration keeps its work within that of the first."""
        twin = self.prepared.twin
        if twin is None:
            return None
        if twin.task is None or state is None:
            own: Contents = PlainContents(twin.plan, algorithms.load(twin.plan.recipe.algorithm))
        else:
            from aiasst.quantize.calibrate.loop import calibrate

            with disk_errors(self.prepared.destination):
                work = WorkState.open(state.folder / _TWIN_WORK, twin.task.key)
            own = calibrate(twin.task, work, _named(progress), lookups=first)
        return TwinContents(own, first, twin.inventory)

    def _fill(self, staging: Path, contents: Contents, second: TwinContents | None, progress: ProgressFn) -> None:
        model, beside = self.prepared.source.model, self.prepared.twin
        sources = [self.prepared.source] + ([] if beside is None else [beside.source])
        self._quantize_caches([source.model.graph for source in sources], staging, progress)
        others = other_rows(self.prepared.source, self.prepared.inventory)
        with WeightsFile(staging / WEIGHTS_NAME, lends=second is not None) as file:
            rewrite(model.graph, self.prepared.inventory.found, self.prepared.plan, contents, file, progress=progress)
        if self.prepared.is_encoder:
            rephrase(model.graph)
        ir.save(model, staging / GRAPH_NAME)
        twin = None
        if second is not None and beside is not None:
            twin = self._fill_twin(beside, staging, second, file, progress)
        graphs = [staging / GRAPH_NAME] + ([] if twin is None else [staging / TWIN_GRAPH_NAME])
        for done, graph in enumerate(graphs):
            progress(Progress("check", done, len(graphs), "running a few tokens"))
            check_runs(graph, self.prepared.source.graph_path)
        progress(Progress("check", len(graphs), len(graphs)))
        copy_travelling_files(self.prepared.source.folder, staging)
        write_text_atomically(staging / _RECIPE_NAME, recipe_yaml(self.prepared.plan.recipe))
        write_manifest(staging, self._manifest(staging, others, twin))

    def _fill_twin(
        self, twin: Twin, staging: Path, contents: TwinContents, first: WeightsFile, progress: ProgressFn
    ) -> TwinRecord:
        """Write the second form beside the first, and give its part of the manifest."""
        model, found = twin.source.model, twin.inventory.found
        others, shared = other_rows(twin.source, twin.inventory), shared_names(found)
        with WeightsFile(staging / TWIN_WEIGHTS_NAME, first=first) as file:
            rewrite(model.graph, found, twin.plan, contents, file, progress=_named(progress))
        ir.save(model, staging / TWIN_GRAPH_NAME)
        return TwinRecord(
            quantization=self._quantization(twin.plan, calibrated=twin.task is not None),
            weights=twin_rows(planned_rows(twin.plan, others), shared, file.shared),
        )

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

    def _manifest(self, staging: Path, others: dict[str, Weight], twin: TwinRecord | None) -> Manifest:
        return Manifest(
            aiasst_version=__version__,
            task=self.prepared.source.task,
            exporter=self.prepared.source.exporter,
            source=self.prepared.source.source,
            shape=self.prepared.source.shape,
            tokens=self.prepared.source.tokens,
            encoding=self.prepared.source.encoding,
            weights=planned_rows(self.prepared.plan, others),
            quantization=self._quantization(self.prepared.plan, calibrated=self.prepared.task is not None),
            twin=twin,
            files=record_files(staging),
        )

    def _quantization(self, plan: Plan, *, calibrated: bool) -> Quantization:
        return Quantization(
            recipe=plan.recipe.name,
            algorithm=plan.recipe.algorithm,
            calibration=self._calibration(used=calibrated),
            bits_per_weight=round(plan.bits_per_weight, 4),
            cache=self._cache(),
        )

    def _calibration(self, *, used: bool) -> Calibration | None:
        if self.prepared.samples is None:
            return None
        return _record(self.prepared.samples, used=used)

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


def _named(progress: ProgressFn) -> ProgressFn:
    """Tells of the second form's work under names of its own."""
    return lambda event: progress(replace(event, stage=f"{event.stage} {TWIN_RECIPE}"))
