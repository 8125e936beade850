"""From what the caller asks for to a job that could begin: algorithm, text, formats, memory. Reads no weights without a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from aiasst.artifacts.model_folder import ModelFolder, disk_errors
from aiasst.artifacts.recipe import CacheFormat, Recipe, load_recipe
from aiasst.errors import ArtifactError, UsageError
from aiasst.evaluate.measure import DECODER_TASK
from aiasst.progress import Progress, ProgressFn, silent
from aiasst.quantize import algorithms
from aiasst.quantize.cache.nodes import CacheTensor, find_caches
from aiasst.quantize.cache.observe import CacheCalibration
from aiasst.quantize.calibrate import estimate
from aiasst.quantize.calibrate.estimate import Folder
from aiasst.quantize.calibrate.layers import LayeredModel, cut_layers
from aiasst.quantize.calibrate.samples import LENGTH, Samples, load_samples
from aiasst.quantize.calibrate.shapes import shape_of
from aiasst.quantize.calibrate.task import Task, prepare_task
from aiasst.quantize.heap import give_back
from aiasst.quantize.inventory import Inventory, take_inventory
from aiasst.quantize.matrix import Matrix
from aiasst.quantize.phases import FLOAT, Estimate, Phase
from aiasst.quantize.plan import Plan, make_plan
from aiasst.quantize.source import QuantizeSource, open_source
from aiasst.quantize.tables import other_rows, unnamed_bytes
from aiasst.quantize.twin import RECIPE as TWIN_RECIPE
from aiasst.quantize.twin import Twin, is_shared, plan_twin, without_shared_products
from aiasst.quantize.vocabulary import Cuts, cut_vocabulary
from aiasst.sizes import human_bytes

if TYPE_CHECKING:
    from aiasst.artifacts.device import DeviceConfig
    from aiasst.quantize.planning.budget import Budget
    from aiasst.quantize.planning.mix import PlannedMix

_DEFAULT_RECIPE = "int4"
_ENCODER_RECIPE = "w8a8"
"""An encoder multiplies all tokens of its texts at once: there w8a8 is the fastest form, and 4 bits the slowest."""
_ENCODER_LENGTH = 64
"""Tokens of a passage that an encoder is calibrated on: sentences and paragraphs are what it reads, and around the first and last
tokens of a text activations are of another range."""
_NO_ENCODERS = ("text-generation", "unknown")
_TOKENIZER = "tokenizer.json"
# What serves where a model cannot be calibrated.
_FALLBACK = "mse"
_RANGES_HINT = "give token ids with --calibration FILE.npz, or take ranges that follow from each row: --recipe w8a8"
_CACHE_HINT = "give token ids with --calibration FILE.npz, or leave out --cache int8"


@dataclass(frozen=True)
class Wishes:
    """What the caller asks for; see `aiasst.quantize.quantize`."""

    recipe: Recipe | None = None
    algorithm: str | None = None
    cache: CacheFormat | None = None
    calibration: Path | str | None = None
    sequences: int = 64
    seed: int = 0
    max_ram: int | None = None
    budget: Budget | None = None
    device: DeviceConfig | None = None
    twin: bool = False


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
    twin: Twin | None = None
    """The second form, where one is asked for."""
    cache: CacheCalibration | None = None
    """Of a cache that becomes int8; None: it stays as it is."""

    @property
    def is_encoder(self) -> bool:
        """Whether the model embeds or classifies texts, as far as is known."""
        return self.source.task not in _NO_ENCODERS


def prepare(
    source: Path | str | ModelFolder, output: Path | str | None, wishes: Wishes, progress: ProgressFn = silent
) -> Prepared:
    """Open and plan.

    Raises:
        ArtifactError: source, recipe or calibration file is unfit.
        BudgetRefused: a budget or `max_ram` cannot be kept.
    """
    plans = wishes.budget is not None and wishes.recipe is None
    recipe = wishes.recipe or load_recipe(_DEFAULT_RECIPE if plans else _usual_recipe(source))
    recipe = recipe.model_copy(update={"cache": wishes.cache or recipe.cache})
    cuts = _candidate_cuts if plans else _cuts_of(recipe)
    preparation = _Preparation(*_opened(source, cuts), partial(_opened, source, cuts), output, wishes, progress)
    preparation.refuse_twin()
    if wishes.budget is not None:
        wishes.budget.refuse_other_kind(encoder=preparation.source.task not in _NO_ENCODERS)
    cache = preparation.cache(recipe)
    if not plans:
        return replace(preparation.prepared(recipe), cache=cache)
    sight, planning = preparation.planning(recipe)
    mix = preparation.mix(sight, recipe)
    mix = replace(mix, recipe=mix.recipe.model_copy(update={"cache": recipe.cache}))
    give_back()
    # Only the cuts that the plan makes use of.
    used = partial(_opened, source, _cuts_of(mix.recipe))
    preparation = _Preparation(*used(), used, output, wishes, progress, sight.samples, (planning,))
    return replace(preparation.prepared(mix.recipe, mix), cache=cache)


def _usual_recipe(source: Path | str | ModelFolder) -> str:
    """Name of the recipe for a model of which nobody says how to quantize it."""
    return _DEFAULT_RECIPE if open_source(source).task in _NO_ENCODERS else _ENCODER_RECIPE


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
    again: Callable[[], tuple[QuantizeSource, Inventory]]
    """Opens both once more."""
    output: Path | str | None
    wishes: Wishes
    progress: ProgressFn
    read: Samples | None = None
    """The calibration text, where it has been read before."""
    before: tuple[Phase, ...] = ()
    """What was done already."""

    def prepared(self, recipe: Recipe, mix: PlannedMix | None = None) -> Prepared:
        """Decide on algorithm, text, formats and memory, in this order; `mix` is what `recipe` comes from."""
        wishes = self.wishes
        algorithm = wishes.algorithm or recipe.algorithm
        calibrates = recipe.needs_ranges or algorithms.load(algorithm).NEEDS != "nothing"
        sight, obstacle = self._sight() if calibrates else (None, "")
        if recipe.needs_ranges and sight is None:
            raise ArtifactError(f"the ranges of activations cannot be found: {obstacle}", _RANGES_HINT)
        samples = sight.samples if sight is not None else self._recorded_samples()
        notes: list[str] = []
        if calibrates and sight is None:
            notes.append(f"{algorithm} gives way to {_FALLBACK}, which looks at no text: {obstacle}")
            algorithm = _FALLBACK
        plan = _plan(self.source, self.inventory, recipe.model_copy(update={"algorithm": algorithm}))
        second = self._second_plan(plan, calibrates=sight is not None)
        task = second_task = None
        if sight is not None:
            after = self._after(plan, sight.layered, plainly=False, second=second)
            task, second_task = self._tasks(plan, second, algorithm, sight, after)
            notes.append(replace(task.estimate, phases=self.before + task.estimate.phases).summary)
        elif wishes.max_ram is not None:
            Estimate(self._after(plan, None, plainly=True, second=second)).refuse(wishes.max_ram)
        if second is not None:
            notes.append(
                f"the second form ({second.recipe.name}) takes {human_bytes(_own_bytes(second))} beside this one"
            )
        if caches := self._small_caches(recipe):
            each = sum(cache.channels for cache in caches)
            notes.append(f"keys and values of a token take {each:,} bytes in int8, not {4 * each:,}")
        plan = replace(plan, notes=tuple(notes), mix=mix)
        twin = None if second is None else Twin(*self.again(), second, second_task)
        return Prepared(self.source, self.inventory, plan, samples, task, self._destination(plan), wishes.budget, twin)

    def refuse_twin(self) -> None:
        """Raise UsageError where a second form is asked for and this model has no use for one."""
        if self.wishes.twin and (self.source.task != DECODER_TASK or self.source.table is None):
            raise UsageError(
                f"{self.source.name} writes no text, and --twin is for prompts and batches of models that do",
                f"quantize it to one form: --recipe {TWIN_RECIPE}",
            )

    def _second_plan(self, plan: Plan, *, calibrates: bool) -> Plan | None:
        """The plan of the second form; None where none is asked for."""
        if not self.wishes.twin:
            return None
        recipe = load_recipe(TWIN_RECIPE)
        if not calibrates:
            recipe = recipe.model_copy(update={"algorithm": plan.recipe.algorithm})
        return plan_twin(plan, _plan(self.source, self.inventory, recipe))

    def _tasks(
        self, plan: Plan, second: Plan | None, algorithm: str, sight: _Sight, after: Sequence[Phase]
    ) -> tuple[Task, Task | None]:
        """The calibration of the first form, and that of the second, which comes between it and the phases `after`."""
        wishes = self.wishes
        known = self.source, sight.layered, self.inventory

        def first(rest: Sequence[Phase]) -> Task:
            return prepare_task(*known, plan, algorithm, sight.samples, wishes.max_ram, rest)

        if second is None:
            return first(after), None
        # Its time and disk are part of what comes after the first calibration, whose key is part of its own.
        task = prepare_task(
            *known, second, second.recipe.algorithm, sight.samples, wishes.max_ram, after,
            beside=first(()).key, title=f"calibration of the {TWIN_RECIPE} form",
        )  # fmt: skip
        return first(task.estimate.phases), replace(task, inventory=without_shared_products(self.inventory))

    def cache(self, recipe: Recipe) -> CacheCalibration | None:
        """What finds the scales of an int8 cache; None where `recipe` leaves it in floating point.

        Raises:
            ArtifactError: the cache cannot be int8, or there is no text to find scales on.
            BudgetRefused: that takes more than `max_ram`.
        """
        tensors = self._small_caches(recipe)
        if not tensors:
            return None
        sight, obstacle = self._sight()
        if sight is None:
            raise ArtifactError(f"the scales of an int8 cache cannot be found: {obstacle}", _CACHE_HINT)
        found = CacheCalibration.prepare(sight.layered, tensors, sight.samples)
        torch = algorithms.load(self.wishes.algorithm or recipe.algorithm).NEEDS != "nothing"
        shape = shape_of(self.source, sight.layered, self.inventory)
        Estimate((estimate.cache_scales(shape, found.samples.ids.shape, torch=torch),)).refuse(self.wishes.max_ram)
        return found

    def _small_caches(self, recipe: Recipe) -> tuple[CacheTensor, ...]:
        return find_caches(self.source.model.graph) if recipe.cache == "int8" else ()

    def planning(self, recipe: Recipe) -> tuple[_Sight, Phase]:
        """What planning looks at, and what it takes; `recipe` tells the algorithm alone.

        Raises:
            ArtifactError: there is nothing to look at.
            BudgetRefused: planning, or what comes after it with formats as the budget allows them, takes more than `max_ram`.
        """
        from aiasst.quantize.planning.estimate import planning_of

        sight, obstacle = self._sight()
        if sight is None:
            raise ArtifactError(f"a budget cannot be planned: {obstacle}", "quantize by a recipe instead: --recipe")
        wishes = self.wishes
        assert wishes.budget is not None
        algorithm = wishes.algorithm or recipe.algorithm
        phase = planning_of(
            self.source, sight.layered, self.inventory, sight.samples, algorithm, wishes.budget, wishes.max_ram
        )
        whole = Estimate((phase, *self._phases_of_usual_formats(sight, recipe, algorithm)))
        whole.refuse(wishes.max_ram)
        self.progress(Progress("estimate", 1, 1, whole.summary))
        return sight, phase

    def _phases_of_usual_formats(self, sight: _Sight, recipe: Recipe, algorithm: str) -> tuple[Phase, ...]:
        """What comes after planning, while nobody knows the formats: those of `recipe`, and a folder as large as is allowed."""
        assert self.wishes.budget is not None
        plan = _plan(self.source, self.inventory, recipe.model_copy(update={"algorithm": algorithm}))
        calibrates = algorithms.load(algorithm).NEEDS != "nothing"
        second = self._second_plan(plan, calibrates=calibrates)
        allowed = _allowed_bytes(self.wishes.budget, plan)
        after = self._after(plan, sight.layered, plainly=False, folder_bytes=allowed, second=second)
        if not calibrates:
            return after
        return self._tasks(plan, second, algorithm, sight, after)[0].estimate.phases

    def _after(
        self,
        plan: Plan,
        layered: LayeredModel | None,
        *,
        plainly: bool,
        folder_bytes: int | None = None,
        second: Plan | None = None,
    ) -> tuple[Phase, ...]:
        """Writing a folder, and the proof where there is one.

        Args:
            plan: the formats.
            layered: the model in layers, where it has been cut.
            plainly: weights are rounded as they are written, without torch.
            folder_bytes: size of the folder where it is another than the plan's.
            second: the formats of a second form.
        """
        matrices = [found.matrix for found in self.inventory.found]
        folder = _folder(plan, folder_bytes)
        writing = estimate.writing(matrices, folder, plainly=plainly)
        twin = None if second is None else replace(_folder(second), borrowed=second.bytes_after - _own_bytes(second))
        if twin is not None:
            own = [matrix for matrix in matrices if not is_shared(matrix)]
            writing = estimate.beside(writing, estimate.writing(own, twin, plainly=plainly))
        facts = self.source.shape
        if facts is None or not (self.source.folder / _TOKENIZER).is_file():
            return (writing,)
        shape = shape_of(self.source, layered or cut_layers(self.source, self.inventory), self.inventory)
        if self.source.task != DECODER_TASK:
            original = Folder(plan.bytes_before, max((weight.bytes_before for weight in plan.weights), default=0))
            return writing, estimate.proof_of_whole(shape, folder, original, torch=not plainly)
        cached = 2 * FLOAT * facts.layers * facts.kv_heads * facts.head_dim
        proof = estimate.proof_in_layers(
            shape,
            folder,
            parameters=plan.parameters,
            context=facts.context_length,
            torch=not plainly,
            twin=twin,
            cached=cached,
        )
        return writing, proof

    def _sight(self) -> tuple[_Sight | None, str]:
        """Text and layers to calibrate with, or why there are none."""
        tokenizer = self.source.folder if (self.source.folder / _TOKENIZER).is_file() else None
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
        tokenizer = self.source.folder if (self.source.folder / _TOKENIZER).is_file() else None
        return self._samples(tokenizer)

    def _samples(self, tokenizer: Path | None) -> Samples:
        if self.read is not None:
            return self.read
        shape = self.source.shape
        # The same amount of text.
        length = LENGTH if self.source.task in _NO_ENCODERS else _ENCODER_LENGTH
        return load_samples(
            self.wishes.calibration,
            tokenizer,
            sequences=self.wishes.sequences * LENGTH // length,
            length=length,
            seed=self.wishes.seed,
            context_length=shape.context_length if shape else None,
            vocab_size=shape.vocab_size if shape else None,
        )

    def mix(self, sight: _Sight, recipe: Recipe) -> PlannedMix:
        """The formats that the budget asks for; `recipe` tells the algorithm alone."""
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
                algorithm=self.wishes.algorithm or recipe.algorithm,
                device=self.wishes.device,
                work=work,
                more_bytes=sum(cache.scale_bytes for cache in self._small_caches(recipe)),
                max_ram=self.wishes.max_ram,
                progress=self.progress,
            )

    def _destination(self, plan: Plan) -> Path:
        if self.output is not None:
            return Path(self.output)
        return self.source.beside / f"{self.source.name}-{plan.recipe.name}"


def _folder(plan: Plan, nbytes: int | None = None) -> Folder:
    """What a plan will write, by its sizes."""
    largest = max((weight.bytes_after for weight in plan.weights), default=0)
    return Folder(plan.bytes_after if nbytes is None else nbytes, largest)


def _own_bytes(second: Plan) -> int:
    """Bytes of a second form beside the first: its products, and norms that came out otherwise."""
    return second.other_bytes + sum(w.bytes_after for w in second.weights if not is_shared(w.matrix))


def _allowed_bytes(budget: Budget, plan: Plan) -> int:
    """The largest folder that keeps `budget`; that of `plan` where no size is limited."""
    limits = [] if budget.max_bytes is None else [budget.max_bytes]
    if budget.target_bpw is not None:
        limits.append(int(budget.target_bpw * plan.parameters / 8) + plan.table_bytes)
    return min(plan.bytes_before, *limits) if limits else plan.bytes_after


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
