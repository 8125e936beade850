"""Plans from end to end on tiny models: every budget is met or refused, and the same budget gives the same plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from aiasst.artifacts.model_folder import ModelFolder
from aiasst.errors import BudgetRefused, UsageError
from aiasst.quantize.calibrate.samples import Samples
from aiasst.quantize.inventory import Inventory, take_inventory
from aiasst.quantize.planning import Budget, PlannedMix, plan_under_budget
from aiasst.quantize.planning.losses import Sensitivity
from aiasst.quantize.planning.planner import Planner
from aiasst.quantize.planning.units import find_units
from aiasst.quantize.source import QuantizeSource, open_source

Tiny = Callable[[str], ModelFolder]


def _opened(folder: ModelFolder) -> tuple[QuantizeSource, Inventory]:
    source = open_source(folder)
    return source, take_inventory(source.model.graph, source.table)


def _plan(folder: ModelFolder, work: Path, budget: Budget, algorithm: str = "gptq") -> PlannedMix:
    source, inventory = _opened(folder)
    ids = np.random.default_rng(0).integers(4, 105, (12, 24))
    return plan_under_budget(
        source, inventory, Samples("ids", ids, 0, "made up"), budget, algorithm=algorithm, work=work
    )


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_a_plan_keeps_its_size_and_is_found_again(tiny: Tiny, tmp_path: Path, name: str) -> None:
    budget = Budget(target_bpw=12.0)
    mix = _plan(tiny(name), tmp_path / "work", budget)
    assert mix.bits_per_weight <= 12.0
    assert mix.predicted_kl >= 0
    assert mix.measured
    assert (tmp_path / "work" / "losses.json").exists()
    again = _plan(tiny(name), tmp_path / "work", budget)
    assert again == mix
    assert [p.loss for p in mix.front] == sorted((p.loss for p in mix.front), reverse=True)


def test_an_accuracy_alone_asks_for_the_fewest_bytes(tiny: Tiny, tmp_path: Path) -> None:
    strict, lax = (_plan(tiny("llama"), tmp_path / "work", Budget(max_kld=kld)) for kld in (1e-6, 1.0))
    assert strict.predicted_kl <= 1e-6
    assert lax.nbytes < strict.nbytes


@pytest.mark.parametrize("algorithm", ["rtn", "awq"])
def test_any_algorithm_can_be_planned_for(tiny: Tiny, tmp_path: Path, algorithm: str) -> None:
    assert _plan(tiny("llama"), tmp_path / "work", Budget(target_bpw=12.0), algorithm).recipe.algorithm == algorithm


def test_what_cannot_be_is_refused_before_the_work(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(BudgetRefused, match="no choice of formats keeps 1 kB") as refusal:
        _plan(tiny("llama"), tmp_path / "work", Budget(max_bytes=1000))
    assert "smallest possible" in refusal.value.hint
    assert not (tmp_path / "work").exists()
    with pytest.raises(UsageError, match="costs of a machine"):
        _plan(tiny("llama"), tmp_path / "work", Budget(token_ms=1.0))
    with pytest.raises(UsageError, match="no limit"):
        _plan(tiny("llama"), tmp_path / "work", Budget())


def test_random_budgets_are_met_or_refused(tiny: Tiny) -> None:
    source, inventory = _opened(tiny("llama"))
    matrices = [found.matrix for found in inventory.found]
    units = find_units(matrices, layers=inventory.layers, opset=source.opset)
    random = np.random.default_rng(0)
    errors = {
        unit.title: {
            c.label: float(random.uniform(0.5, 1) * 4.0 ** -(8 * c.nbytes / unit.elements)) for c in unit.candidates
        }
        for unit in units
    }
    table = Sensitivity(tuple(errors), errors, errors, ())
    met = 0
    for _ in range(50):
        budget = Budget(
            target_bpw=random.uniform(2, 20),
            max_kld=10 ** random.uniform(-4, 0) if random.random() < 0.5 else None,
            max_bytes=int(random.uniform(5e4, 5e5)) if random.random() < 0.5 else None,
        )
        try:
            planner = Planner.prepare(source, inventory, budget, "gptq", None)
            planner.refuse_hopeless()
            mix = planner.plan(table)
        except BudgetRefused as refusal:
            assert refusal.hint
            continue
        met += 1
        assert budget.target_bpw is not None
        assert mix.bits_per_weight <= budget.target_bpw
        assert budget.max_bytes is None or mix.nbytes <= budget.max_bytes
        assert budget.max_kld is None or mix.predicted_kl <= budget.max_kld
    assert 5 < met < 50
