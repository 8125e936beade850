"""Quantize: a float model folder (or any ONNX file) → a smaller one, by a recipe or under a budget. Knows neither checkpoints nor
the command line.

source (open) → inventory (which weights) → planning (which formats, where a budget decides) → plan (sizes, before the work)
→ calibrate (round with text in sight, layer by layer) → rewrite (pack, replace nodes) → check (does it run)
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiasst.artifacts.model_folder import ModelFolder
from aiasst.artifacts.recipe import CacheFormat, Recipe, load_recipe
from aiasst.errors import MissingExtraError
from aiasst.progress import ProgressFn, silent
from aiasst.quantize.config import QuantConfig, bits_error

if TYPE_CHECKING:
    from aiasst.artifacts.device import DeviceConfig
    from aiasst.quantize.plan import Plan
    from aiasst.quantize.planning.budget import Budget
    from aiasst.quantize.preparation import Prepared

__all__ = ["QuantConfig", "bits_error", "preview", "quantize"]


def quantize(
    source: Path | str | ModelFolder,
    output: Path | str | None = None,
    *,
    recipe: Recipe | str | None = None,
    algorithm: str | None = None,
    cache: CacheFormat | None = None,
    calibration: Path | str | None = None,
    sequences: int = 64,
    seed: int = 0,
    max_ram: int | None = None,
    budget: Budget | None = None,
    device: DeviceConfig | None = None,
    twin: bool = False,
    force: bool = False,
    progress: ProgressFn = silent,
) -> ModelFolder:
    """Quantize `source` (a model folder, an .onnx file, or a folder with one) to the folder `output`.

    A calibration that was interrupted goes on where it stopped when the same call is made again.

    Args:
        source: what `convert` wrote, or an ONNX model from elsewhere.
        output: the folder to write; default: beside the source, named after it and the recipe.
        recipe: a recipe, the name of one that comes with aiasst, or the path of a YAML file; default int4, of an encoder w8a8.
            With a budget, the formats are planned, and no recipe is needed.
        algorithm: how weights are rounded, in place of the recipe's word for it.
        cache: how keys and values of earlier tokens are kept, in place of the recipe's word for it; int8 takes a quarter of the
            memory, with scales that are found on the calibration text.
        calibration: text (.txt, .jsonl) or token ids (.npz) for algorithms that calibrate; default: our own texts.
        sequences: how many passages of the text are used.
        seed: of the choice of passages; the same seed gives the same bytes.
        max_ram: bytes of memory that the process may take; kept, or refused before the work begins.
        budget: limits on size, accuracy or time that the result has to keep.
        device: of the machine that a budget in time is for.
        twin: write a second form (w8a8) into the same folder, for prompts and for many sequences at once. Limits of size are
            those of the first form; limits of accuracy hold for both.
        force: replace `output` if it exists.
        progress: told about each layer and weight.

    Raises:
        ArtifactError: the source, the recipe or the calibration file is missing, damaged or unfit; `output` exists.
        BudgetRefused: `max_ram` or `budget` cannot be kept; no folder was written.
        ExportError: the result does not run; no folder was written.
        ResourceError: the disk is full, or would be.
    """
    prepared = _prepare(
        source, output, progress, recipe=recipe, algorithm=algorithm, cache=cache, calibration=calibration,
        sequences=sequences, seed=seed, max_ram=max_ram, budget=budget, device=device, twin=twin,
    )  # fmt: skip
    from aiasst.quantize.job import Job

    return Job(prepared).write(force=force, progress=progress)


def preview(
    source: Path | str | ModelFolder,
    output: Path | str | None = None,
    *,
    recipe: Recipe | str | None = None,
    algorithm: str | None = None,
    cache: CacheFormat | None = None,
    calibration: Path | str | None = None,
    sequences: int = 64,
    seed: int = 0,
    max_ram: int | None = None,
    budget: Budget | None = None,
    device: DeviceConfig | None = None,
    twin: bool = False,
    progress: ProgressFn = silent,
) -> Plan:
    """What `quantize` would do, without doing it: a format for each weight, the sizes, memory, disk and time.

    Without a budget it reads no weights. Takes the same arguments and raises the same errors as `quantize`.
    """
    return _prepare(
        source, output, progress, recipe=recipe, algorithm=algorithm, cache=cache, calibration=calibration,
        sequences=sequences, seed=seed, max_ram=max_ram, budget=budget, device=device, twin=twin,
    ).plan  # fmt: skip


def _prepare(
    source: Path | str | ModelFolder,
    output: Path | str | None,
    progress: ProgressFn,
    *,
    recipe: Recipe | str | None,
    **wishes: Any,
) -> Prepared:
    if importlib.util.find_spec("onnx_ir") is None:
        raise MissingExtraError("onnx-ir", "convert")
    from aiasst.quantize.preparation import Wishes, prepare

    chosen = load_recipe(recipe) if isinstance(recipe, str) else recipe
    return prepare(source, output, Wishes(recipe=chosen, **wishes), progress)
