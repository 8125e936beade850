"""From what the caller asks for to a job that could begin: algorithm, text, formats, memory. Reads no weights without a budget."""

from __future__ import annotations

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
from aiasst.quantize.plan import Plan, make_plan
from aiasst.quantize.source import QuantizeSource, open_source
from aiasst.quantize.tables import other_rows, unnamed_bytes

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
    opened = open_source(source)
    inventory = take_inventory(opened.model.graph, opened.table)
    if not inventory.found:
        raise ArtifactError(
            f"{opened.graph_path} has no weight that could be quantized",
            "float32 constants of MatMul, Gemm or Gather are what is quantized",
        )
    return _Preparation(opened, inventory, output, wishes, progress).prepared()


@dataclass(frozen=True)
class _Preparation:
    """From what the caller asks for to a job."""

    source: QuantizeSource
    inventory: Inventory
    output: Path | str | None
    wishes: Wishes
    progress: ProgressFn

    def prepared(self) -> Prepared:
        """Decide on algorithm, text, formats and memory, in this order."""
        wishes = self.wishes
        recipe = wishes.recipe or load_recipe(_DEFAULT_RECIPE)
        algorithm = wishes.algorithm or recipe.algorithm
        calibrates = algorithms.load(algorithm).NEEDS != "nothing"
        sight, obstacle = self._sight() if calibrates or wishes.budget is not None else (None, "")
        samples = sight.samples if sight is not None else self._recorded_samples()
        notes: list[str] = []
        if calibrates and sight is None:
            notes.append(f"{algorithm} gives way to {_FALLBACK}, which looks at no text: {obstacle}")
            algorithm = _FALLBACK
        mix = None
        if wishes.budget is not None and wishes.recipe is None:
            if sight is None:
                raise ArtifactError(f"a budget cannot be planned: {obstacle}", "quantize by a recipe instead: --recipe")
            mix = self._planned(sight, algorithm)
            recipe = mix.recipe
        plan = _plan(self.source, self.inventory, recipe.model_copy(update={"algorithm": algorithm}))
        task = None
        if sight is not None and algorithms.load(algorithm).NEEDS != "nothing":
            task = prepare_task(
                self.source, sight.layered, self.inventory, plan, algorithm, sight.samples, wishes.max_ram
            )
            notes.append(task.estimate.summary)
        else:
            matrices = [found.matrix for found in self.inventory.found]
            estimate.refuse_plain(matrices, plan.bytes_after, wishes.max_ram)
        plan = replace(plan, notes=tuple(notes), mix=mix)
        return Prepared(self.source, self.inventory, plan, samples, task, self._destination(plan), wishes.budget)

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
        shape = self.source.shape
        return load_samples(
            self.wishes.calibration,
            tokenizer,
            sequences=self.wishes.sequences,
            seed=self.wishes.seed,
            context_length=shape.context_length if shape else None,
            vocab_size=shape.vocab_size if shape else None,
        )

    def _planned(self, sight: _Sight, algorithm: str) -> PlannedMix:
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
