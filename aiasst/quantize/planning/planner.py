"""From a budget to a plan: puts sensitivity, solver and refinement together. Does no mathematics and prints nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aiasst.artifacts.cost_table import CostTable
from aiasst.artifacts.device import DeviceConfig
from aiasst.artifacts.model_folder import MANIFEST_NAME, sha256_of
from aiasst.artifacts.recipe import Recipe, WeightFormat
from aiasst.errors import BudgetRefused, UsageError
from aiasst.progress import ProgressFn, silent
from aiasst.quantize import algorithms
from aiasst.quantize.calibrate.layers import cut_layers
from aiasst.quantize.calibrate.samples import Samples
from aiasst.quantize.calibrate.state import key_of
from aiasst.quantize.inventory import Inventory
from aiasst.quantize.plan import make_plan
from aiasst.quantize.planning import budget as limits
from aiasst.quantize.planning import losses as truth
from aiasst.quantize.planning import refine, solve, workload
from aiasst.quantize.planning.budget import Agreement, Budget
from aiasst.quantize.planning.losses import Sensitivity
from aiasst.quantize.planning.mix import Cell, FrontPoint, PlannedMix, uniform_points
from aiasst.quantize.planning.solve import Choice, Limit
from aiasst.quantize.planning.streams import Streams, Text
from aiasst.quantize.planning.units import Candidate, Unit, columns_of, find_units, recipe_of, sizes
from aiasst.quantize.source import QuantizeSource
from aiasst.quantize.tables import other_rows, unnamed_bytes
from aiasst.sizes import human_bytes
from aiasst.version import __version__

# Counts up whenever the same settings would give other sensitivities.
_METHOD = 2
_TABLE = "losses.json"
# A plan keeps so much of the loss that is allowed; the rest is for text that is not the calibration's.
_SHARE_OF_LOSS = 0.85
_POINTS = 20
_PLANS = 6
_PROBES, _PROBE_LENGTH = 8, 256
_SEQUENCES_SEEN = 32
# Multiplications that the measured variants, and the text that rounding looks at, may take: minutes on a few cores.
_VARIANT_OPERATIONS, _TEXT_OPERATIONS = 6e13, 3e13
_FEWEST_VARIANTS, _MOST_VARIANTS = 12, 400
_RUNS_A_LAYER = 4
# Beside the weights: the graph grows by the nodes and names of packed weights, and tensors are aligned.
_GRAPH_GROWTH, _BYTES_A_WEIGHT = 1.25, 512


def plan_under_budget(
    source: QuantizeSource,
    inventory: Inventory,
    samples: Samples,
    budget: Budget,
    *,
    algorithm: str,
    device: DeviceConfig | None = None,
    work: Path,
    more_bytes: int = 0,
    max_ram: int | None = None,
    progress: ProgressFn = silent,
) -> PlannedMix:
    """The formats of least loss within `budget`; of an accuracy alone, those of fewest bytes.

    Args:
        source: the float model.
        inventory: its weights.
        samples: calibration text; most of it for the statistics that rounding goes by, a little to measure on.
        budget: the limits; at least one.
        algorithm: how weights will be rounded.
        device: of the machine that a time per token is for.
        work: folder for activations and for what was found out, which a later call with another budget reuses.
        more_bytes: that the folder will hold beside what the source has.
        max_ram: bytes of memory that may be taken: fewer sequences go through a layer at once.
        progress: told of layers.

    Raises:
        ArtifactError: a layer does not run, or the device config lacks costs.
        BudgetRefused: the limits cannot be kept together; the message says what can.
        OSError: the disk is full.
        UsageError: a time is limited and there is no device config, or nothing is limited.
    """
    planner = Planner.prepare(source, inventory, budget, algorithm, device, more_bytes)
    planner.refuse_hopeless()
    work.mkdir(parents=True, exist_ok=True)
    text = probe_text(source, samples, max_ram)
    streams = Streams(cut_layers(source, inventory), inventory, text, algorithms.load(algorithm), work / "streams")
    table = _sensitivity(planner, streams, source, inventory, samples, work, progress)
    return planner.plan(table, streams, progress)


@dataclass(frozen=True)
class Planner:
    """What is known without looking at the weights."""

    units: tuple[Unit, ...]
    columns: tuple[str, ...]
    nbytes: npt.NDArray[np.int64]
    allowed: npt.NDArray[np.bool_]
    times: npt.NDArray[np.float64] | None
    """Milliseconds a token, [units, columns]; None without a limit in time."""
    other_ms: float
    other_bytes: int
    """Of everything that is not planned, the graph's own bytes included."""
    other_parameter_bytes: int
    parameters: int
    budget: Budget
    algorithm: str
    encoder: bool = False
    """Whether losses are relative errors of hidden states, since there are no logits of a next token."""

    @classmethod
    def prepare(
        cls,
        source: QuantizeSource,
        inventory: Inventory,
        budget: Budget,
        algorithm: str,
        device: DeviceConfig | None,
        more_bytes: int = 0,
    ) -> Planner:
        """Units, sizes and times. Raises UsageError and ArtifactError as `plan_under_budget`."""
        if budget.is_empty:
            raise UsageError("there is no limit to plan for", "give --max-size, --target-bpw, --max-kld or --min-top1")
        matrices = [found.matrix for found in inventory.found]
        layers = source.shape.layers if source.shape else inventory.layers
        units = find_units(matrices, layers=layers, opset=source.opset)
        columns = columns_of(units)
        nbytes, allowed = sizes(units, columns)
        whole = make_plan(
            Recipe(name="float", description="", default=WeightFormat(format="fp32")),
            matrices,
            layers=layers,
            opset=source.opset,
            others=other_rows(source, inventory),
            table_bytes=unnamed_bytes(source, inventory),
        )
        planned = 4 * sum(unit.elements for unit in units)
        graph = source.graph_path.stat().st_size
        graph = int(graph * _GRAPH_GROWTH) if graph < whole.bytes_before / 2 else 0
        times, other_ms = None, 0.0
        if budget.token_ms is not None:
            times, other_ms = _times(units, columns, source, budget, device)
            allowed &= np.isfinite(times)
        return cls(
            units=units,
            columns=columns,
            nbytes=nbytes,
            allowed=allowed,
            times=times,
            other_ms=other_ms,
            other_bytes=more_bytes + whole.bytes_before - planned + graph + _BYTES_A_WEIGHT * len(matrices),
            other_parameter_bytes=4 * whole.parameters - planned,
            parameters=whole.parameters,
            budget=budget,
            algorithm=algorithm,
            encoder=source.task not in ("text-generation", "unknown"),
        )

    # ------------------------------------------------------------------ limits

    @property
    def most_bytes(self) -> float:
        """Bytes that the units may take together."""
        bounds = [math.inf]
        if self.budget.max_bytes is not None:
            bounds.append(self.budget.max_bytes - self.other_bytes)
        if self.budget.target_bpw is not None:
            bounds.append(self.budget.target_bpw * self.parameters / 8 - self.other_parameter_bytes)
        return min(bounds)

    @property
    def size(self) -> npt.NDArray[np.float64]:
        """Bytes, [units, columns]."""
        return self.nbytes.astype(np.float64)

    def limits(self) -> list[Limit]:
        """Of size and time."""
        found = []
        if math.isfinite(self.most_bytes):
            found.append(Limit(self.size, self.most_bytes))
        if self.times is not None and self.budget.token_ms is not None:
            found.append(Limit(self.times, self.budget.token_ms - self.other_ms))
        return found

    def refuse_hopeless(self) -> None:
        """Raise BudgetRefused for a size or a time that no choice keeps, before any of the work."""
        smallest = solve.least(self.size, self.allowed)
        assert smallest is not None
        if solve.total(self.nbytes, smallest) > self.most_bytes:
            raise limits.refuse_size(self._size_in_words(), self._whole_bytes(smallest), self.bits_per_weight(smallest))
        if self.times is None or self.budget.token_ms is None:
            return
        room = [Limit(self.size, self.most_bytes)] if math.isfinite(self.most_bytes) else []
        fastest = solve.least(self.times, self.allowed, room)
        assert fastest is not None
        taken = solve.total(self.times, fastest) + self.other_ms
        if taken > self.budget.token_ms:
            raise limits.refuse_time(self.budget.token_ms, taken, self.budget.workload, alone=not room)

    def _size_in_words(self) -> str:
        words = []
        if self.budget.max_bytes is not None:
            words.append(human_bytes(self.budget.max_bytes, exact=True))
        if self.budget.target_bpw is not None:
            words.append(f"{self.budget.target_bpw:g} bits per weight")
        return " and ".join(words)

    def _whole_bytes(self, choice: Choice) -> int:
        return int(solve.total(self.nbytes, choice)) + self.other_bytes

    def bits_per_weight(self, choice: Choice) -> float:
        """Of the whole model, everything included."""
        return 8 * (solve.total(self.nbytes, choice) + self.other_parameter_bytes) / self.parameters

    # ------------------------------------------------------------------ the plan

    def plan(self, table: Sensitivity, streams: Streams | None = None, progress: ProgressFn = silent) -> PlannedMix:
        """The best plan by `table`, measured as a whole and refined where there are `streams`.

        Raises:
            BudgetRefused: the accuracy cannot be had within the other limits.
        """
        losses = table.losses(self.units, self.columns)
        agreement = Agreement.fitted([m.kl for m in table.measured], [m.top1 for m in table.measured])
        choice = self._first(losses, agreement)
        loss, measured = solve.total(losses, choice), False
        if streams is not None:
            choice, loss, agreement, factor = self._refined(losses, choice, agreement, streams, progress)
            losses, measured = losses * factor, True
        return self._mix(choice, losses, loss, agreement, measured)

    def _first(self, losses: solve.Table, agreement: Agreement, share: float = _SHARE_OF_LOSS) -> Choice:
        """The exact plan: of least loss within size and time; of fewest bytes where accuracy alone is limited."""
        most = self.budget.most_loss(agreement) * share
        if not self.budget.needs_planning:
            smallest = solve.least(self.size, self.allowed, [Limit(losses, most)])
            if smallest is None:
                best = solve.least(losses, self.allowed)
                assert best is not None
                raise self._refusal(most, solve.total(losses, best), agreement, None)
            return smallest
        choice = solve.least(losses, self.allowed, self.limits())
        if choice is None:
            assert self.times is not None and self.budget.token_ms is not None
            fastest = solve.least(self.times, self.allowed, self.limits()[:1])
            taken = math.nan if fastest is None else solve.total(self.times, fastest) + self.other_ms
            raise limits.refuse_time(self.budget.token_ms, taken, self.budget.workload, alone=False)
        loss = solve.total(losses, choice)
        if loss > most / share:
            enough = solve.least(self.size, self.allowed, [Limit(losses, most)])
            needed = None if enough is None else self._whole_bytes(enough)
            raise self._refusal(most / share, loss, agreement, needed)
        return choice

    def _refined(
        self,
        losses: solve.Table,
        first: Choice,
        agreement: Agreement,
        streams: Streams,
        progress: ProgressFn,
    ) -> tuple[Choice, float, Agreement, float]:
        """The best of a few plans by measurement: (plan, loss, agreement as measured, true loss / predicted)."""
        plans = [first]
        if self.budget.needs_planning:
            roles = [unit.role for unit in self.units]
            plans = refine.neighbours(losses, roles, lambda t: solve.least(t, self.allowed, self.limits()), _PLANS)
        found = streams.walk([self._variant(plan) for plan in plans], None, progress)
        agreement = Agreement.fitted(found.kl.tolist(), found.top1.tolist()) if found.kl.max() > 1e-4 else agreement
        best = int(found.kl.argmin())
        factor = float(found.kl[0]) / max(solve.total(losses, plans[0]), 1e-12) if found.kl[0] > 0 else 1.0
        most = self.budget.most_loss(agreement)
        if self.budget.needs_planning:
            if found.kl[best] > most:
                raise self._refused(losses * factor, float(found.kl[best]), most, agreement)
            return plans[best], float(found.kl[best]), agreement, factor
        # Of an accuracy alone: the plan again, with losses as they turned out to be.
        again = self._first(losses * factor, agreement)
        return again, solve.total(losses * factor, again), agreement, factor

    def _refused(self, losses: solve.Table, best: float, most: float, agreement: Agreement) -> BudgetRefused:
        enough = solve.least(self.size, self.allowed, [Limit(losses, most * _SHARE_OF_LOSS)])
        return self._refusal(most, best, agreement, None if enough is None else self._whole_bytes(enough))

    def _refusal(self, most: float, best: float, agreement: Agreement, needed: int | None) -> BudgetRefused:
        if self.encoder:
            return limits.refuse_similarity(most, best, needed)
        return limits.refuse_loss(most, best, agreement, needed)

    def _variant(self, choice: Choice) -> dict[str, WeightFormat]:
        return dict(truth.variant_of(list(zip(self.units, self._candidates(choice), strict=True))))

    def _candidates(self, choice: Choice) -> list[Candidate]:
        labels = [self.columns[column] for column in choice]
        return [
            next(candidate for candidate in unit.candidates if candidate.label == label)
            for unit, label in zip(self.units, labels, strict=True)
        ]

    def front(self, losses: solve.Table) -> tuple[FrontPoint, ...]:
        """The best plan at each of some sizes, from the smallest to that of no loss, or of 16 bits where that is smaller."""
        rich = np.array([column in ("fp16", "fp32") for column in self.columns])
        useful = self.allowed & ~rich
        useful[~useful.any(axis=1)] = self.allowed[~useful.any(axis=1)]
        return tuple(
            FrontPoint(self._whole_bytes(choice), self.bits_per_weight(choice), solve.total(losses, choice))
            for choice in solve.front(losses, self.size, useful, _POINTS)
        )

    def _mix(
        self, choice: Choice, losses: solve.Table, loss: float, agreement: Agreement, measured: bool
    ) -> PlannedMix:
        bits = self.bits_per_weight(choice)
        candidates = self._candidates(choice)
        chosen = {unit: candidate.spec for unit, candidate in zip(self.units, candidates, strict=True)}
        name = f"planned-{bits:.2f}bpw"
        description = f"{bits:.2f} bits per weight, planned for {self._wishes()}; {self._predicted(loss)}"
        cells = tuple(
            Cell(
                unit.role,
                unit.layer,
                candidate.label,
                8 * candidate.nbytes / unit.elements,
                candidate.nbytes,
                price,
                unit.tokens,
            )
            for unit, candidate, price in zip(
                self.units, candidates, losses[np.arange(len(choice)), choice].tolist(), strict=True
            )
        )
        return PlannedMix(
            recipe=recipe_of(self.units, chosen, name=name, description=description, algorithm=self.algorithm),
            cells=cells,
            front=self.front(losses),
            nbytes=self._whole_bytes(choice),
            bits_per_weight=bits,
            predicted_kl=loss,
            predicted_top1=agreement.top1_of(loss),
            measured=measured,
            encoder=self.encoder,
            uniform=uniform_points(self.units, self.columns, losses, self._whole_bytes, self.bits_per_weight),
            token_ms=None if self.times is None else solve.total(self.times, choice) + self.other_ms,
        )

    def _predicted(self, loss: float) -> str:
        if self.encoder:
            return f"predicted similarity {limits.similarity_of_error(loss):.4f}"
        return f"predicted KL divergence {loss:.4f}"

    def _wishes(self) -> str:
        words = [self._size_in_words()] if self.budget.max_bytes or self.budget.target_bpw else []
        if self.budget.max_kld is not None:
            words.append(f"a KL divergence of {self.budget.max_kld:g}")
        if self.budget.min_top1 is not None:
            words.append(f"a top-1 agreement of {self.budget.min_top1:g}")
        if self.budget.min_similarity is not None:
            words.append(f"a similarity of {self.budget.min_similarity:g}")
        if self.budget.token_ms is not None:
            words.append(f"{self.budget.token_ms:g} ms a token at {self.budget.workload}")
        return " and ".join(words)


def _times(
    units: Sequence[Unit],
    columns: Sequence[str],
    source: QuantizeSource,
    budget: Budget,
    device: DeviceConfig | None,
) -> tuple[npt.NDArray[np.float64], float]:
    """(milliseconds of each unit in each format, milliseconds of the rest)."""
    if device is None:
        raise UsageError(
            "a time per token needs the costs of a machine", "measure it: aiasst profile -o device.json; then --device"
        )
    costs = CostTable.of(device.costs)
    times = workload.milliseconds(units, columns, costs, budget.workload)
    known = budget.workload.beside_ms
    return times, workload.attention_milliseconds(source.shape, costs, budget.workload) if known is None else known


# ---------------------------------------------------------------------- what is looked at


def probe_text(source: QuantizeSource, samples: Samples, max_ram: int | None = None) -> Text:
    """The last samples to measure on, some of the others for statistics; fewer of a large model, or under a ceiling of memory."""
    ids = samples.ids
    # As many tokens where passages are short.
    shorter = max(1, _PROBE_LENGTH // ids.shape[1])
    probes = max(1, min(_PROBES * shorter, len(ids) // 3))
    seen = ids if len(ids) == 1 else ids[: len(ids) - probes]
    a_token = 2 * _RUNS_A_LAYER * _product_elements(source)
    wanted = max(2, min(_SEQUENCES_SEEN * shorter, int(_TEXT_OPERATIONS / (a_token * ids.shape[1]))))
    step = max(1, (1 if max_ram is not None else 8) * 512 // ids.shape[1])
    measured = ids[len(ids) - probes :, :_PROBE_LENGTH]
    if _product_elements(source) > 5e8:
        measured = measured[: max(1, probes // 2)]
    return Text(_batches(seen[:wanted], step), _batches(measured, 2 * step))


def _batches(ids: npt.NDArray[np.int64], step: int) -> tuple[npt.NDArray[np.int64], ...]:
    return tuple(ids[start : start + step] for start in range(0, len(ids), step))


def _product_elements(source: QuantizeSource) -> int:
    """Weights that a token is multiplied with, near enough."""
    tensors = (value.const_value for value in source.model.graph.initializers.values())
    return sum(tensor.size for tensor in tensors if tensor is not None and len(tensor.shape) == 2)


def _sensitivity(
    planner: Planner,
    streams: Streams,
    source: QuantizeSource,
    inventory: Inventory,
    samples: Samples,
    work: Path,
    progress: ProgressFn,
) -> Sensitivity:
    """What was found out before about the same model, text and algorithm, or is found out now."""
    identity = source.folder / MANIFEST_NAME if source.table is not None else source.graph_path
    key = key_of(
        {
            "source": [sha256_of(identity), sha256_of(source.graph_path)],
            "samples": [samples.sha256, *samples.ids.shape],
            "algorithm": planner.algorithm,
            "columns": {unit.title: [c.label for c in unit.candidates] for unit in planner.units},
            "version": [__version__, _METHOD],
        }
    )
    known = Sensitivity.load(work / _TABLE, key)
    if known is not None:
        return known
    tokens = sum(batch.size for batch in streams.text.probes)
    most = int(_VARIANT_OPERATIONS / max(1, _product_elements(source) * tokens))
    most = min(max(most, _FEWEST_VARIANTS), _MOST_VARIANTS)
    found = {weight.matrix.name: weight for weight in inventory.found}
    table = truth.measure(
        streams, planner.units, found, algorithms.load(planner.algorithm), most=most, progress=progress
    )
    table.save(work / _TABLE, key)
    return table
