"""The estimate is never less than what is really taken, and grows and shrinks with what it depends on."""

from __future__ import annotations

import json
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
from aiasst.quantize.calibrate import estimate
from aiasst.quantize.calibrate.estimate import LayerShape, Work
from aiasst.quantize.matrix import Matrix


def _matrix(n: int, k: int) -> Matrix:
    return Matrix("w", "other", None, n, k, rows_first=False)


def _work(hidden: int = 2048, inner: int = 8192, vocabulary: int = 128_256, layers: int = 16, **more: object) -> Work:
    """A decoder of the Llama shape."""
    inside = (
        _matrix(hidden * 3 // 2, hidden), _matrix(hidden, hidden), _matrix(2 * inner, hidden), _matrix(hidden, inner)
    )  # fmt: skip
    embedding = Matrix("e", "embed", None, vocabulary, hidden, rows_first=True, multiplies=False, looks_up=True)
    layer = LayerShape(inside, inside, (), (hidden, hidden, hidden, inner))
    head = LayerShape((), (_matrix(vocabulary, hidden),), (), (hidden,))
    work = Work(
        layers=(LayerShape((), (), (embedding,), ()), *[layer] * layers, head),
        sequences=64,
        length=512,
        hidden=hidden,
        heads=hidden // 64,
        need="hessian",
        compares=True,
        folder_bytes=800_000_000,
    )
    return replace(work, **more)  # type: ignore[arg-type]


def test_a_billion_weights_fit_into_three_gigabytes() -> None:
    """The float model alone has five."""
    found = estimate.estimate(_work(), 3_000_000_000)
    assert found.memory <= 3_000_000_000
    assert "GB of memory" in found.summary


def test_depth_costs_time_and_disk_but_no_memory() -> None:
    shallow, deep = (estimate.memory(_work(layers=count), 1) for count in (4, 40))
    assert shallow == deep
    assert estimate.disk(_work(layers=40)) > estimate.disk(_work(layers=4))
    assert sum(estimate.operations(_work(layers=40))) > 8 * sum(estimate.operations(_work(layers=4)))


@given(st.integers(0, 5_000_000_000))
def test_a_ceiling_is_kept_or_refused(ceiling: int) -> None:
    work = _work()
    try:
        found = estimate.estimate(work, ceiling)
    except BudgetRefused as error:
        assert estimate.memory(work, 1) > ceiling
        assert "allow" in error.hint
    else:
        assert found.memory <= ceiling
        assert found.memory == estimate.memory(work, found.sequences_at_once)


@given(st.integers(1, 64), st.integers(16, 2048))
def test_a_batch_is_never_empty_nor_larger_than_the_text(sequences: int, length: int) -> None:
    found = estimate.estimate(_work(sequences=sequences, length=length))
    assert 1 <= found.sequences_at_once <= sequences


def test_an_algorithm_that_needs_less_takes_less() -> None:
    memories = [estimate.memory(_work(need=need), 1) for need in ("hessian", "energy")]
    assert memories[0] > memories[1]


_MEASURED = """
import json, sys
from pathlib import Path
from aiasst.quantize import preview, quantize
from aiasst.quantize.preparation import Wishes, prepare
import aiasst.quantize.preparation as p
task = prepare(sys.argv[1], sys.argv[2], Wishes(algorithm=sys.argv[4], calibration=sys.argv[3])).task
quantize(sys.argv[1], sys.argv[2], algorithm=sys.argv[4], calibration=sys.argv[3])
# Not of getrusage, which counts what the process that started this one took.
status = Path("/proc/self/status").read_text().splitlines()
peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
print(json.dumps({"peak": peak, "estimate": task.estimate.memory}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is asked of /proc")
def test_the_real_peak_stays_below(story: ModelFolder, tmp_path: Path) -> None:
    ids = tmp_path / "ids.npz"
    np.savez(ids, input_ids=np.random.default_rng(0).integers(1, 4096, (16, 256)))
    arguments = [str(story.path), str(tmp_path / "out"), str(ids), "awq"]
    run = subprocess.run([sys.executable, "-c", _MEASURED, *arguments], capture_output=True, check=True, text=True)
    found = json.loads(run.stdout)
    assert found["peak"] <= found["estimate"] < 3 * found["peak"]
