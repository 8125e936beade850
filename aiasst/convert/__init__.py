"""Convert: a checkpoint becomes a model folder that computes the same. Knows the order of the steps, no step's inside.

source          a folder, a hub id or a GGUF file → a local checkpoint
imports/        a checkpoint that others quantized → float32, exactly, and the grids its weights lie on
architecture    what its configuration says
exporters/      the checkpoint → an ONNX graph
finish/         whatever exporter made it → one form of graph
verify          the converted model against the original in torch
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Protocol

from aiasst.artifacts.encoding import Encoding, embeds, read_encoding
from aiasst.artifacts.model_folder import (
    GRAPH_NAME,
    MANIFEST_VERSION,
    WEIGHTS_NAME,
    Manifest,
    ModelFolder,
    copy_travelling_files,
    disk_errors,
    record_files,
    refuse_existing,
    staged_folder,
    write_manifest,
)
from aiasst.errors import ExportError, MissingExtraError, UsageError
from aiasst.progress import Progress, ProgressFn, silent
from aiasst.version import __version__

if TYPE_CHECKING:
    import onnx_ir as ir
    from onnx_ir.external_data import CallbackInfo

    from aiasst.convert.architecture import Architecture
    from aiasst.convert.finish import Finished
    from aiasst.convert.sources import Checkpoint

__all__ = ["DEFAULT_TOLERANCE", "Restore", "convert", "default_output"]

DECODER_TASK = "text-generation"
EMBEDDER_TASK = "feature-extraction"
DEFAULT_TOLERANCE = 1e-4
"""Largest allowed difference, as a share of the largest absolute value the original answers; see verify."""


class Restore(Protocol):
    """Puts the integers of a quantized checkpoint back into its converted graph: `aiasst.quantize.imported.restore`."""

    def __call__(
        self, source: ModelFolder, grids: Path, output: Path, *, force: bool, progress: ProgressFn
    ) -> ModelFolder:
        """Write the folder `output` from the float folder `source` and the file of the grids (artifacts.grids)."""
        ...


@dataclass(frozen=True)
class _Job:
    """One conversion, ready to be tried with one exporter after the other."""

    checkpoint: Checkpoint
    architecture: Architecture
    task: str
    destination: Path
    tolerance: float
    force: bool
    progress: ProgressFn


def convert(
    model: str | Path,
    output: Path | str | None = None,
    *,
    task: str | None = None,
    exporter: str | None = None,
    revision: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    tolerance: float = DEFAULT_TOLERANCE,
    restore: Restore | None = None,
    force: bool = False,
    progress: ProgressFn = silent,
) -> ModelFolder:
    """Turn a checkpoint into a model folder: ONNX in float32, verified against the original.

    A checkpoint that is quantized already is dequantized exactly and verified so; with `restore` the folder that appears has
    its integers, and without it the float32 weights that they stand for. (`aiasst.convert` is this with `restore`.)

    Args:
        model: A local Hugging Face folder, a hub id, or a GGUF file.
        output: The folder to write; named after the model in the working folder where None.
        task: A task or a synonym of one; the checkpoint's own where None.
        exporter: The only one to try; all in their order where None.
        revision: Branch, tag or commit of a hub repository.
        allow_pickle: Read .bin and .pt weights too (with weights_only).
        trust_remote_code: Let the repository's own Python run.
        tolerance: Largest difference allowed, as a share of the original's largest absolute answer.
        restore: What becomes of a checkpoint that is quantized.
        force: Replace the output where it is a model folder.
        progress: Told of every stage.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or of an unknown type.
        ExportError: no exporter could make a graph of it that computes the same.
        ArtifactError: the output exists.
        ResourceError: the disk is too small.
        NetworkError: the hub did not answer.
        UsageError: an unknown task or exporter.
        MissingExtraError: the packages of the extra `convert` are not installed.
    """
    require_packages()
    from aiasst.convert import exporters, space
    from aiasst.convert.architecture import read_architecture
    from aiasst.convert.sources import resolve
    from aiasst.convert.tasks import canonical_task, default_task

    if not tolerance >= 0:
        raise UsageError(f"a tolerance of {tolerance} makes no sense", "give a small positive number such as 1e-4")
    destination = Path(output) if output is not None else default_output(model)
    refuse_existing(destination, force=force)
    chosen = canonical_task(task) if task is not None else None
    candidates = [exporter] if exporter is not None else exporters.names()
    for name in candidates:
        exporters.load(name)
    with resolve(
        str(model), revision=revision, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code, progress=progress
    ) as checkpoint:
        # Embedders often name the class whose head they were pretrained with, and lack that head.
        chosen = chosen or (EMBEDDER_TASK if embeds(checkpoint.path) else default_task(checkpoint.config))
        usable = _usable(candidates, checkpoint, chosen)
        architecture = read_architecture(checkpoint)
        space.require(destination, space.float32_bytes(checkpoint.path))
        job = _Job(checkpoint, architecture, chosen, destination, tolerance, force, progress)
        if checkpoint.grids is None or restore is None:
            return _first_that_works(job, usable)
        return _restored(job, usable, checkpoint.grids, restore)


def require_packages() -> None:
    """Raise MissingExtraError where the packages of the extra `convert` are not installed."""
    for package in ("torch", "transformers", "onnx_ir"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package.replace("_", "-"), "convert")


def default_output(model: str | Path) -> Path:
    """Where a model goes without -o: `<name>-onnx` in the working folder."""
    text = str(model).rstrip("/\\")
    name = Path(text).resolve().name if Path(text).exists() else text.split("/")[-1]
    return Path(f"{name.removesuffix('.gguf')}-onnx")


def _usable(candidates: Sequence[str], checkpoint: Checkpoint, task: str) -> list[str]:
    """Those of `candidates` that can export the checkpoint; UnsupportedModelError with everyone's reason where none can."""
    from aiasst.convert import exporters
    from aiasst.convert.architecture import nobody_exports

    said: dict[str, str] = {}
    for name in candidates:
        exporter = exporters.load(name)
        usable, reason = exporter.available()
        if usable:
            usable, reason = exporter.supports(checkpoint, task)
        if not usable:
            said[name] = reason
    if len(said) == len(candidates):
        raise nobody_exports(checkpoint.model_type, task, list(said.values()))
    return [name for name in candidates if name not in said]


def _first_that_works(job: _Job, candidates: Sequence[str]) -> ModelFolder:
    """Try the exporters in order, the next one where one fails; where all fail, the error says how each did."""
    failures: dict[str, ExportError] = {}
    for name in candidates:
        try:
            return _write(job, name)
        except ExportError as error:
            failures[name] = error
            job.progress(Progress("export", 0, 1, f"{name} failed: {error.message}"))
    last = list(failures.values())[-1]
    if len(failures) == 1:
        raise last
    told = "; ".join(f"{name}: {error.message}" for name, error in failures.items())
    raise type(last)(f"no exporter made a graph that computes the same: {told}", last.hint)


def _restored(job: _Job, candidates: Sequence[str], grids: Path, restore: Restore) -> ModelFolder:
    """Convert into a folder beside the destination, which vanishes, and let `restore` write the destination from it."""
    beside = job.destination.parent
    with disk_errors(job.destination):
        beside.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=beside, prefix=f".{job.destination.name}.", ignore_cleanup_errors=True) as name:
            floats = _first_that_works(replace(job, destination=Path(name) / "float32"), candidates)
            return restore(floats, grids, job.destination, force=job.force, progress=job.progress)


def _write(job: _Job, name: str) -> ModelFolder:
    """Export, finish, save, verify and describe with exporter `name`; the folder appears when all of it went well."""
    from aiasst.convert import exporters, verify, weight_table
    from aiasst.convert.tokenizer_files import ensure_tokenizer

    model = exporters.load(name).export(job.checkpoint, job.task, job.progress)
    finished = _finish(job, model)
    shape = weight_table.shape(finished.model, job.architecture)
    with staged_folder(job.destination, force=job.force) as staging:
        _save(finished, staging, job.progress)
        rows = weight_table.weights(finished)
        del model, finished
        graph = staging / GRAPH_NAME
        if job.task == DECODER_TASK:
            proof = verify.decoder(job.checkpoint, graph, shape, job.architecture, job.tolerance, job.progress)
        else:
            proof = verify.encoder(job.checkpoint, graph, job.task, job.architecture, job.tolerance, job.progress)
        copy_travelling_files(job.checkpoint.path, staging)
        ensure_tokenizer(job.checkpoint.path, staging, job.progress)
        encoding = None if job.task == DECODER_TASK else _encoding(job, staging)
        manifest = Manifest(
            schema_version=MANIFEST_VERSION,
            aiasst_version=__version__,
            task=job.task,
            exporter=name,
            source=job.checkpoint.source,
            shape=shape,
            tokens=job.architecture.tokens,
            encoding=encoding,
            weights=rows,
            verification=proof,
            files=record_files(staging),
        )
        write_manifest(staging, manifest)
    return ModelFolder.open(job.destination)


def _encoding(job: _Job, folder: Path) -> Encoding:
    """What the checkpoint's files say of texts and vectors, with the numbers that belong to it written into `folder`."""
    from aiasst.convert import projections

    encoding = read_encoding(folder)
    if job.task == EMBEDDER_TASK:
        for projection in encoding.projections:
            projections.write(job.checkpoint.path, projection, folder, allow_pickle=job.checkpoint.allow_pickle)
        return encoding
    # A classifier's answers go through no pooling, whatever the body was made for before.
    return encoding.model_copy(update={"projections": ()})


def _finish(job: _Job, model: ir.Model) -> Finished:
    from aiasst.convert.finish import finish_decoder, finish_encoder

    job.progress(Progress("finish", 0, 1))
    if job.task == DECODER_TASK:
        finished = finish_decoder(
            model,
            layer_windows=job.architecture.layer_windows,
            tied_embedding=job.architecture.tied_embedding,
        )
    else:
        finished = finish_encoder(model)
    job.progress(Progress("finish", 1, 1))
    return finished


def _save(finished: Finished, folder: Path, progress: ProgressFn) -> None:
    """Write graph and weights; derived weights are computed one at a time, as they are written."""
    import onnx_ir as ir

    def written(tensor: object, info: CallbackInfo) -> None:
        progress(Progress("write", info.index + 1, info.total))

    ir.save(
        finished.model, folder / GRAPH_NAME, external_data=WEIGHTS_NAME, callback=written, max_workers=1
    )  # fmt: skip
