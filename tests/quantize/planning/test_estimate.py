"""What planning takes: never less than what is really taken, in step with model and text, and refused before the work."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiasst.artifacts.model_folder import ModelFolder
from aiasst.artifacts.recipe import load_recipe
from aiasst.errors import BudgetRefused
from aiasst.progress import Progress
from aiasst.quantize import preview, quantize
from aiasst.quantize.calibrate.shapes import GroupShape, LayerShape, ModelShape
from aiasst.quantize.matrix import Matrix
from aiasst.quantize.phases import Phase
from aiasst.quantize.planning import Budget, estimate, planner, proxy, streams
from aiasst.quantize.planning.estimate import Planning
from aiasst.quantize.planning.streams import Text
from aiasst.quantize.planning.units import find_units

Tiny = Callable[[str], ModelFolder]


def _batches(sequences: int, length: int, at_once: int = 4) -> tuple[np.ndarray, ...]:
    ids = np.ones((sequences, length), dtype=np.int64)
    return tuple(ids[start : start + at_once] for start in range(0, sequences, at_once))


def _planning(
    layers: int, width: int, vocabulary: int, sequences: int, length: int, *, tied: bool = True, **more: object
) -> Planning:
    hidden, inner = 64 * width, 160 * width
    table = Matrix("table", "embed", None, 1000 * vocabulary, hidden, rows_first=True, multiplies=tied, looks_up=True)
    head = table if tied else Matrix("head", "lm_head", None, 1000 * vocabulary, hidden, rows_first=False)

    def inside(layer: int) -> LayerShape:
        sizes = (
            ("qkv", 2 * hidden, hidden),
            ("o", hidden, hidden),
            ("gate_up", 2 * inner, hidden),
            ("down", hidden, inner),
        )
        return LayerShape(
            tuple(
                GroupShape(k, (Matrix(f"{role}.{layer}", role, layer, n, k, rows_first=False),), folds=k == hidden)
                for role, n, k in sizes
            )
        )

    shape = ModelShape(
        (LayerShape((), (table,)), *map(inside, range(layers)), LayerShape((GroupShape(hidden, (head,)),), unread=1)),
        hidden,
        heads=width,
    )
    planning = Planning(
        shape,
        find_units(shape.matrices, layers=layers, opset=21),
        Text(_batches(sequences, 32 * length), _batches(4, 16 * length)),
        need="hessian",
        chooses=True,
    )
    return replace(planning, **more)  # type: ignore[arg-type]


def _numbers(phase: Phase) -> list[float]:
    return [phase.memory, phase.disk, phase.runs, phase.algebra]


_SIZES = st.integers(1, 8)


@given(_SIZES, _SIZES, _SIZES, _SIZES, st.booleans())
def test_more_of_anything_never_takes_less(layers: int, width: int, sequences: int, length: int, tied: bool) -> None:
    start = [layers, width, 4, sequences, length]
    before = _numbers(estimate.phase(_planning(*start, tied=tied)))
    for at in range(len(start)):
        more = [size + (place == at) for place, size in enumerate(start)]
        after = _numbers(estimate.phase(_planning(*more, tied=tied)))
        assert all(np.greater_equal(after, before)), more


def test_a_plan_for_accuracy_alone_is_one_plan() -> None:
    several, one = (estimate.phase(_planning(4, 4, 8, 4, 4, chooses=chooses)) for chooses in (True, False))
    assert all(np.greater_equal(_numbers(several), _numbers(one)))
    assert several.algebra > one.algebra


def test_statistics_of_the_hessian_take_more() -> None:
    full, plain = (estimate.phase(_planning(4, 8, 8, 4, 4, need=need)) for need in ("hessian", "nothing"))
    assert full.memory > plain.memory
    assert full.algebra > plain.algebra


def test_the_numbers_are_those_of_the_work() -> None:
    assert (estimate.PLANS, estimate.VARIANT_OPERATIONS) == (planner._PLANS, planner._VARIANT_OPERATIONS)
    assert (estimate.FEWEST_VARIANTS, estimate.MOST_VARIANTS) == (planner._FEWEST_VARIANTS, planner._MOST_VARIANTS)
    assert (estimate.PIECE, estimate.ROWS, estimate.TOKENS) == (streams._PIECE, proxy._ROWS, proxy._TOKENS)


# ---------------------------------------------------------------------- in truth


@pytest.fixture
def ids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("ids") / "ids.npz"
    np.savez(file, input_ids=np.random.default_rng(0).integers(4, 105, (12, 64)))
    return file


def test_what_does_not_fit_is_refused_before_anything_is_written(tiny: Tiny, tmp_path: Path, ids: Path) -> None:
    source = tiny("llama")
    before = sorted(source.path.parent.iterdir())
    events: list[Progress] = []
    with pytest.raises(BudgetRefused, match="of memory") as refusal:
        quantize(
            source, tmp_path / "out", budget=Budget(target_bpw=12.0), calibration=ids, max_ram=300_000_000,
            progress=events.append,
        )  # fmt: skip
    assert refusal.value.exit_code == 3
    assert "allow" in refusal.value.hint
    assert not events
    assert not list(tmp_path.iterdir())
    assert sorted(source.path.parent.iterdir()) == before


def test_a_plan_tells_what_all_phases_take(tiny: Tiny, ids: Path) -> None:
    events: list[Progress] = []
    plan = preview(tiny("llama"), budget=Budget(target_bpw=12.0), calibration=ids, progress=events.append)
    for words in (plan.notes[0], events[0].note):
        assert all(word in words for word in ("of memory", "of disk", "planning", "calibration", "writing", "proof"))
    assert load_recipe("int4").algorithm == plan.recipe.algorithm


_MEASURED = """
import json, sys
from pathlib import Path
from aiasst.quantize.job import Job
from aiasst.quantize.phases import Estimate
from aiasst.quantize.planning import Budget
from aiasst.quantize import preparation
refuse = Estimate.refuse
found = []
def noted(self, max_ram):
    found.append(self.memory)
    refuse(self, max_ram)
Estimate.refuse = noted
wishes = preparation.Wishes(calibration=sys.argv[3], budget=Budget(target_bpw=8.0))
Job(preparation.prepare(sys.argv[1], sys.argv[2], wishes)).write()
status = Path("/proc/self/status").read_text().splitlines()
peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
print(json.dumps({"peak": peak, "estimate": max(found)}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is asked of /proc")
def test_the_real_peak_stays_below(tiny: Tiny, tmp_path: Path) -> None:
    file = tmp_path / "ids.npz"
    np.savez(file, input_ids=np.random.default_rng(0).integers(4, 105, (12, 256)))
    arguments = [str(tiny("llama").path), str(tmp_path / "out"), str(file)]
    run = subprocess.run([sys.executable, "-c", _MEASURED, *arguments], capture_output=True, check=True, text=True)
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["peak"] <= found["estimate"] < 1.5 * found["peak"]
