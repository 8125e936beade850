"""What calibrating, writing and proving take: never less than what is really taken, and in step with what it depends on."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiasst.artifacts.model_folder import ModelFolder
from aiasst.errors import BudgetRefused
from aiasst.quantize.algorithms import gptq
from aiasst.quantize.calibrate import estimate
from aiasst.quantize.calibrate.estimate import Folder, Work
from aiasst.quantize.calibrate.shapes import GroupShape, LayerShape, ModelShape
from aiasst.quantize.grid import Grid
from aiasst.quantize.matrix import Matrix
from aiasst.quantize.phases import Phase


def _matrix(name: str, n: int, k: int) -> Matrix:
    return Matrix(name, "other", None, n, k, rows_first=False)


def _shape(hidden: int = 2048, inner: int = 8192, vocabulary: int = 128_256, layers: int = 16) -> ModelShape:
    """A decoder of the Llama shape."""
    embedding = Matrix("e", "embed", None, vocabulary, hidden, rows_first=True, multiplies=False, looks_up=True)
    sizes = ((hidden * 3 // 2, hidden), (hidden, hidden), (2 * inner, hidden), (hidden, inner))
    inside = [
        LayerShape(
            tuple(GroupShape(k, (_matrix(f"{layer}.{i}", n, k),), folds=i % 2 == 0) for i, (n, k) in enumerate(sizes))
        )
        for layer in range(layers)
    ]
    head = LayerShape((GroupShape(hidden, (_matrix("head", vocabulary, hidden),), folds=True),), unread=1)
    return ModelShape((LayerShape((), (embedding,)), *inside, head), hidden, heads=max(1, hidden // 64))


def _work(shape: ModelShape | None = None, block: int = 128, **more: object) -> Work:
    shape = shape or _shape()
    grids = {matrix.name: Grid(4, block, False) for matrix in shape.matrices}
    work = Work(shape, sequences=64, length=512, need="hessian", compares=True, grids=grids)
    return replace(work, **more)  # type: ignore[arg-type]


_FOLDER = Folder(900_000_000, 140_000_000)


def _proof(shape: ModelShape, folder: Folder = _FOLDER) -> Phase:
    return estimate.proof_in_layers(shape, folder, parameters=10**9, context=2048, torch=True)


def test_a_billion_weights_fit_into_three_gigabytes() -> None:
    """The float model alone has five."""
    shape = _shape()
    after = (estimate.writing(shape.matrices, _FOLDER, plainly=False), _proof(shape))
    found = estimate.estimate(_work(shape), after, 3_000_000_000)
    assert found.memory <= 3_000_000_000
    assert [phase.name for phase in found.phases] == ["calibration", "writing", "proof"]
    assert "GB of memory" in found.summary


def test_depth_costs_time_and_disk_but_no_memory() -> None:
    shallow, deep = (_work(_shape(layers=count)) for count in (4, 40))
    assert estimate.memory(shallow, 1) == estimate.memory(deep, 1)
    (few,), (many,) = estimate.estimate(shallow).phases, estimate.estimate(deep).phases
    assert many.disk > few.disk
    assert many.runs + many.algebra > 8 * (few.runs + few.algebra)


_SIZES = st.integers(1, 12)


@given(_SIZES, _SIZES, _SIZES, _SIZES)
def test_more_of_anything_never_takes_less(layers: int, width: int, sequences: int, length: int) -> None:
    """Layers, width, vocabulary and text, in a calibration and in a proof."""

    def numbers(layers: int, width: int, vocabulary: int, sequences: int, length: int) -> list[float]:
        shape = _shape(64 * width, 160 * width, 1000 * vocabulary, layers)
        work = _work(shape, sequences=sequences, length=64 * length)
        (calibration,) = estimate.estimate(work).phases
        proof = _proof(shape)
        return [
            estimate.memory(work, 1), calibration.disk, calibration.runs, calibration.algebra,
            proof.memory, proof.disk, proof.runs,
        ]  # fmt: skip

    start = [layers, width, 4, sequences, length]
    before = numbers(*start)
    for at in range(len(start)):
        more = [size + (place == at) for place, size in enumerate(start)]
        assert all(np.greater_equal(numbers(*more), before)), more


@given(st.integers(1, 64))
def test_more_passages_never_take_less(sequences: int) -> None:
    fewer, more = (estimate.estimate(_work(sequences=count)).phases[0] for count in (sequences, sequences + 1))
    assert more.memory >= fewer.memory
    assert more.disk >= fewer.disk
    assert more.runs >= fewer.runs


@given(st.integers(0, 5_000_000_000))
def test_a_ceiling_is_kept_or_refused(ceiling: int) -> None:
    work = _work()
    proof = _proof(work.shape)
    try:
        found = estimate.estimate(work, (proof,), ceiling)
    except BudgetRefused as error:
        assert max(estimate.memory(work, 1), proof.memory) > ceiling
        assert error.exit_code == 3
        assert "allow" in error.hint
    else:
        assert max(found.memory, proof.memory) <= ceiling
        assert found.phases[0].memory == estimate.memory(work, found.sequences_at_once)


@given(st.integers(1, 8), st.sampled_from(["hessian", "energy"]))
def test_what_a_refusal_asks_for_is_enough(width: int, need: str) -> None:
    work = _work(_shape(512 * width, 1500 * width), need=need)
    with pytest.raises(BudgetRefused) as refusal:
        estimate.estimate(work, (_proof(work.shape),), 1000)
    figure = re.search(r"allow ([\d.]+) ([MG])B", refusal.value.hint)
    assert figure is not None
    allowed = int(float(figure[1]) * {"M": 1e6, "G": 1e9}[figure[2]])
    estimate.estimate(work, (_proof(work.shape),), allowed)


def test_the_phase_that_needs_most_is_named() -> None:
    work = _work()
    huge = Folder(40_000_000_000, 10**9)
    with pytest.raises(BudgetRefused, match="the proof of this model takes about 4") as refusal:
        estimate.estimate(work, (_proof(work.shape, huge),), 6_000_000_000)
    assert "fewer bits" in refusal.value.hint


@given(st.integers(1, 64), st.integers(16, 2048))
def test_a_batch_is_never_empty_nor_larger_than_the_text(sequences: int, length: int) -> None:
    found = estimate.estimate(_work(sequences=sequences, length=length))
    assert 1 <= found.sequences_at_once <= sequences


def test_an_algorithm_that_needs_less_takes_less() -> None:
    memories = [estimate.memory(_work(need=need), 1) for need in ("hessian", "energy")]
    assert memories[0] > memories[1]
    taken = [estimate.estimate(_work(need=need)).phases[0].algebra for need in ("hessian", "energy")]
    assert taken[0] > taken[1]


def test_small_blocks_make_large_systems_of_equations() -> None:
    """A row's scales depend on each other: blocks * blocks numbers a row."""
    assert estimate.memory(_work(block=32), 1) > estimate.memory(_work(block=256), 1) + 500_000_000


def test_descent_is_counted() -> None:
    """Two rounds: products for the scales and the gradient, and two sweeps; each N * K^2 multiplications and additions."""
    matrix = _matrix("w", 1000, 4096)
    full = estimate.rounding_operations(matrix, Grid(4, 128, False), "hessian", compares=True)
    quick = estimate.quick_rounding_operations(matrix, Grid(4, 128, False), "hessian")
    assert full - quick > 20 * 1000 * 4096**2
    eight_bits = estimate.rounding_operations(matrix, Grid(8, 128, False), "hessian", compares=True)
    assert eight_bits < quick


def test_the_numbers_are_those_of_the_algorithm() -> None:
    assert (estimate.ROUNDS, estimate.SWEEPS, estimate.REFINED_BITS) == (
        gptq._ROUNDS,
        gptq._SWEEPS,
        gptq._BITS_WORTH_IT,
    )


def test_large_models_are_proven_on_fewer_tokens() -> None:
    assert estimate.proof_tokens(10**9) == 4096
    assert estimate.proof_tokens(10**7) is None


_MEASURED = """
import json, sys
from pathlib import Path
from aiasst.quantize.job import Job
from aiasst.quantize.preparation import Wishes, prepare
prepared = prepare(sys.argv[1], sys.argv[2], Wishes(algorithm=sys.argv[4], calibration=sys.argv[3], twin="twin" in sys.argv))
Job(prepared).write()
# Not of getrusage, which counts what the process that started this one took.
status = Path("/proc/self/status").read_text().splitlines()
peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
print(json.dumps({"peak": peak, "estimate": prepared.task.estimate.memory}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is asked of /proc")
@pytest.mark.parametrize("algorithm", [["gptq"], ["awq"], ["awq", "twin"]], ids=" ".join)
def test_the_real_peak_stays_below(story: ModelFolder, tmp_path: Path, algorithm: list[str]) -> None:
    ids = tmp_path / "ids.npz"
    np.savez(ids, input_ids=np.random.default_rng(0).integers(1, 4096, (16, 256)))
    arguments = [str(story.path), str(tmp_path / "out"), str(ids), *algorithm]
    run = subprocess.run([sys.executable, "-c", _MEASURED, *arguments], capture_output=True, check=True, text=True)
    found = json.loads(run.stdout)
    assert found["peak"] <= found["estimate"] < 1.5 * found["peak"]
