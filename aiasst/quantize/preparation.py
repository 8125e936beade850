"""From what the caller asks for to a job that could begin: algorithm, text, formats, memory. Reads no weights without a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from aiasst.artifacts.model_folder import ModelFolder, disk_errors
from aiasst.artifacts.recipe import Recipe, load_recipe
from aiasst.errors import ArtifactError
from aiasst.progress import ProgressFn, silent
from aiasst.quantize import algorithms
from aiasst.quantize.calibrate import estimate
from aiasst.quantize.calibrate.layers import LayeredModel, cut_layers
from aiasst.quantize.calibrate.samples import Samples, load_samples
from aiasst.quantize.calibrate.task import Task, prepare_task
from aiasst.quantize.inventory import Inventory, take_inventory
from aiasst.quantize.matrix import Matrix
from aiasst.quantize.plan import Plan, make_plan
from aiasst.quantize.source import QuantizeSource, open_source
from aiasst.quantize.tables import other_rows, unnamed_bytes
from aiasst.quantize.vocabulary import Cuts, cut_vocabulary

if TYPE_CHECKING:
    from aiasst.artifacts.device import DeviceConfig
    from aiasst.quantize.planning.budget import Budget
    from aiasst.quantize.planning.mix import PlannedMix

_DEFAULT_RECIPE = "int4"
# What serves where a model cannot be calibrated.
_FALLBACK = "mse"


@dataclass(frozen=True)
class Wishes:
    """What the caller asks for; see `aiasst.quantize.quantize`."""

    recipe: Recipe | None = None
    algorithm: str | None = None
    calibration: Path | str | None = None
    sequences: int = 64
    seed: int = 0
    max_ram: int | None = None
    budget: Budget | None = None
    device: DeviceConfig | None = None


@dataclass(frozen=True)
class Prepared:
    """A source, what is in it, the plan for it, and what calibration it will see."""

    source: QuantizeSource
    inventory: Inventory
    plan: Plan
    samples: Samples | None
    """What was given for calibration, or is used without."""
    task: Task | None
    """The calibration; None where every weight is rounded by itself."""
    destination: Path
    budget: Budget | None


def prepare(
    source: Path | str | ModelFolder, output: Path | str | None, wishes: Wishes, progress: ProgressFn = silent
) -> Prepared:
    """Open and plan.

    Raises:
        ArtifactError: source, recipe or calibration file is unfit.
        BudgetRefused: a budget or `max_ram` cannot be kept.
    """
    plans = wishes.budget is not None and wishes.recipe is None
    recipe = wishes.recipe or load_recipe(_DEFAULT_RECIPE)
    cuts = _candidate_cuts if plans else _cuts_of(recipe)
    preparation = _Preparation(*_opened(source, cuts), output, wishes, progress)
    if not plans:
        return preparation.prepared(recipe)
    sight, mix = preparation.planned(recipe)
    # Only the cuts that the plan makes use of.
    preparation = _Preparation(*_opened(source, _cuts_of(mix.recipe)), output, wishes, progress, sight.samples)
    return preparation.prepared(mix.recipe, mix)


def _opened(source: Path | str | ModelFolder, cuts: Cuts) -> tuple[QuantizeSource, Inventory]:
    """The float model with embedding and head cut, and its weights."""
    opened = open_source(source)
    inventory = take_inventory(opened.model.graph, opened.table)
    if not inventory.found:
        raise ArtifactError(
            f"{opened.graph_path} has no weight that could be quantized",
            "float32 constants of MatMul, Gemm or Gather are what is quantized",
        )
    opened = cut_vocabulary(opened, inventory, cuts)
    return opened, take_inventory(opened.model.graph, opened.table)


def _candidate_cuts(matrix: Matrix) -> Sequence[int]:
    from aiasst.quantize.planning.units import candidate_cuts

    return candidate_cuts(matrix)


def _cuts_of(recipe: Recipe) -> Cuts:
    return lambda matrix: recipe.row_cuts(matrix.planned_role, matrix.n)


@dataclass(frozen=True)
class _Preparation:
    """From what the caller asks for to a job."""

    source: QuantizeSource
    inventory: Inventory
    output: Path | str | None
    wishes: Wishes
    progress: ProgressFn
    read: Samples | None = None
    """The calibration text, where it has been read before."""

    def prepared(self, recipe: Recipe, mix: PlannedMix | None = None) -> Prepared:
        """Decide on algorithm, text, formats and memory, in this order; `mix` is what `recipe` comes from."""
        wishes = self.wishes
        algorithm = wishes.algorithm or recipe.algorithm
        calibrates = algorithms.load(algorithm).NEEDS != "nothing"
        sight, obstacle = self._sight() if calibrates else (None, "")
        samples = sight.samples if sight is not None else self._recorded_samples()
        notes: list[str] = []
        if calibrates and sight is None:
            notes.append(f"{algorithm} gives way to {_FALLBACK}, which looks at no text: {obstacle}")
            algorithm = _FALLBACK
        plan = _plan(self.source, self.inventory, recipe.model_copy(update={"algorithm": algorithm}))
        task = None
        if sight is not None:
            task = prepare_task(
                self.source, sight.layered, self.inventory, plan, algorithm, sight.samples, wishes.max_ram
            )
            notes.append(task.estimate.summary)
        else:
            matrices = [found.matrix for found in self.inventory.found]
            estimate.refuse_plain(matrices, plan.bytes_after, wishes.max_ram)
        plan = replace(plan, notes=tuple(notes), mix=mix)
        return Prepared(self.source, self.inventory, plan, samples, task, self._destination(plan), wishes.budget)

    def planned(self, recipe: Recipe) -> tuple[_Sight, PlannedMix]:
        """The formats that the budget asks for; `recipe` tells the algorithm alone."""
        sight, obstacle = self._sight()
        if sight is None:
            raise ArtifactError(f"a budget cannot be planned: {obstacle}", "quantize by a recipe instead: --recipe")
        return sight, self._mix(sight, self.wishes.algorithm or recipe.algorithm)

    def _sight(self) -> tuple[_Sight | None, str]:
        """Text and layers to calibrate with, or why there are none."""
        tokenizer = self.source.folder if (self.source.folder / "tokenizer.json").is_file() else None
        if self.wishes.calibration is None and tokenizer is None:
            return None, "there is no tokenizer to read our own texts with, and no --calibration file of token ids"
        try:
            layered = cut_layers(self.source, self.inventory)
        except ArtifactError as error:
            return None, error.message
        return _Sight(self._samples(tokenizer), layered), ""

    def _recorded_samples(self) -> Samples | None:
        """A calibration file that nobody will look at is checked and recorded all the same."""
        if self.wishes.calibration is None:
            return None
        tokenizer = self.source.folder if (self.source.folder / "tokenizer.json").is_file() else None
        return self._samples(tokenizer)

    def _samples(self, tokenizer: Path | None) -> Samples:
        if self.read is not None:
            return self.read
        shape = self.source.shape
        return load_samples(
            self.wishes.calibration,
            tokenizer,
            sequences=self.wishes.sequences,
            seed=self.wishes.seed,
            context_length=shape.context_length if shape else None,
            vocab_size=shape.vocab_size if shape else None,
        )

    def _mix(self, sight: _Sight, algorithm: str) -> PlannedMix:
        from aiasst.quantize.planning import plan_under_budget

        assert self.wishes.budget is not None
        # It stays: what was found out about the losses serves the next budget, and the work after a --dry-run.
        work = self.source.beside / f".{self.source.name}.planning"
        with disk_errors(work):
            return plan_under_budget(
                self.source,
                self.inventory,
                sight.samples,
                self.wishes.budget,
                algorithm=algorithm,
                device=self.wishes.device,
                work=work,
                max_ram=self.wishes.max_ram,
                progress=self.progress,
            )

    def _destination(self, plan: Plan) -> Path:
        if self.output is not None:
            return Path(self.output)
        return self.source.beside / f"{self.source.name}-{plan.recipe.name}"


@dataclass(frozen=True)
class _Sight:
    """What a calibration looks at."""

    samples: Samples
    layered: LayeredModel


def _plan(source: QuantizeSource, inventory: Inventory, recipe: Recipe) -> Plan:
    return make_plan(
        recipe,
        [found.matrix for found in inventory.found],
        layers=source.shape.layers if source.shape else inventory.layers,
        opset=source.opset,
        others=other_rows(source, inventory),
        table_bytes=unnamed_bytes(source, inventory),
        left_alone=inventory.left_alone,
    )
