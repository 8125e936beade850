"""Quantize: a float model folder (or any ONNX file) → a smaller one, by a recipe. Knows neither checkpoints nor the command line.

source (open) → inventory (which weights) → plan (which formats) → rewrite (round, pack, replace nodes) → check (does it run)
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from aiasst.artifacts.model_folder import ModelFolder
from aiasst.artifacts.recipe import Recipe, load_recipe
from aiasst.errors import MissingExtraError
from aiasst.progress import ProgressFn, silent
from aiasst.quantize.config import QuantConfig, bits_error

if TYPE_CHECKING:
    from aiasst.quantize.plan import Plan

__all__ = ["QuantConfig", "bits_error", "preview", "quantize"]


def quantize(
    source: Path | str | ModelFolder,
    output: Path | str | None = None,
    *,
    recipe: Recipe | str,
    calibration: Path | str | None = None,
    force: bool = False,
    progress: ProgressFn = silent,
) -> ModelFolder:
    """Quantize `source` (a model folder, an .onnx file, or a folder with one) to the folder `output`.

    Args:
        source: what `convert` wrote, or an ONNX model from elsewhere.
        output: the folder to write; default: beside the source, named after it and the recipe.
        recipe: a recipe, the name of one that comes with aiasst, or the path of a YAML file.
        calibration: token ids (.npz) for algorithms that calibrate; recorded in the manifest.
        force: replace `output` if it exists.
        progress: told about each weight.

    Raises:
        ArtifactError: the source, the recipe or the calibration file is missing, damaged or unfit; `output` exists.
        ExportError: the result does not run; nothing is left behind.
        ResourceError: the disk is full, or would be.
    """
    _need_onnx_ir()
    from aiasst.quantize.job import Job

    return Job.prepare(source, _resolved(recipe), calibration).write(output, force=force, progress=progress)


def preview(source: Path | str | ModelFolder, *, recipe: Recipe | str) -> Plan:
    """What `quantize` would do, without doing it: a format for each weight, and the sizes. Raises ArtifactError as it does."""
    _need_onnx_ir()
    from aiasst.quantize.job import Job

    return Job.prepare(source, _resolved(recipe), None).plan


def _resolved(recipe: Recipe | str) -> Recipe:
    return load_recipe(recipe) if isinstance(recipe, str) else recipe


def _need_onnx_ir() -> None:
    if importlib.util.find_spec("onnx_ir") is None:
        raise MissingExtraError("onnx-ir", "convert")
