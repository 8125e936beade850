"""Stages that only make sense one after the other, for those who call them from Python and for the command line.

Stages do not know of each other (artifacts.* is all they share), so what needs two of them is put together here.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from aiasst.artifacts.model_folder import ModelFolder
from aiasst.artifacts.recipe import WeightFormat
from aiasst.errors import UsageError
from aiasst.progress import ProgressFn, silent

DEFAULT_TOLERANCE = 1e-4
REST_FORMATS = {
    "int8": WeightFormat(format="int8", block_size=128),
    "int4": WeightFormat(format="int4", block_size=128),
}
"""What the unquantized matrices of a quantized checkpoint may become."""


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
    dequantize: bool = False,
    rest: str | None = None,
    force: bool = False,
    progress: ProgressFn = silent,
) -> ModelFolder:
    """Turn a checkpoint into a model folder; one that others quantized (GPTQ, AWQ, …) keeps its integers, bit for bit.

    The stage convert makes a graph of it and proves that it computes the same; where the checkpoint is quantized, it does so with
    the float32 weights that the integers stand for, and the stage quantize puts the integers back.

    Args:
        model: A local Hugging Face folder, a hub id, or a GGUF file.
        output: The folder to write; named after the model in the working folder where None.
        task: A task or a synonym of one; the checkpoint's own where None.
        exporter: The only one to try; all in their order where None.
        revision: Branch, tag or commit of a hub repository.
        allow_pickle: Read .bin and .pt weights too (with weights_only).
        trust_remote_code: Let the repository's own Python run.
        tolerance: Largest difference allowed, as a share of the original's largest absolute answer.
        dequantize: Write the float32 weights of a quantized checkpoint, to be quantized anew.
        rest: Format of what a quantized checkpoint left unquantized (embedding, head): int8 or int4; None: as it is there.
        force: Replace the output where it is a model folder.
        progress: Told of every stage.

    Raises:
        AiasstError: see aiasst.convert.convert and aiasst.quantize.imported.restore.
    """
    from aiasst.convert import convert as to_graph

    if rest is not None and rest not in REST_FORMATS:
        raise UsageError(f"'{rest}' is no format for the rest", f"one of: {', '.join(REST_FORMATS)}")
    return to_graph(
        model,
        output,
        task=task,
        exporter=exporter,
        revision=revision,
        allow_pickle=allow_pickle,
        trust_remote_code=trust_remote_code,
        tolerance=tolerance,
        restore=None if dequantize else partial(_restore, rest),
        force=force,
        progress=progress,
    )


def _restore(
    rest: str | None, source: ModelFolder, grids: Path, output: Path, *, force: bool, progress: ProgressFn
) -> ModelFolder:
    from aiasst.quantize.imported import restore

    spec = None if rest is None else REST_FORMATS[rest]
    return restore(source, grids, output, rest=spec, force=force, progress=progress)
