"""Finished steps survive, unfinished ones leave no trace, and other settings begin anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiasst.quantize.algorithms import rtn
from aiasst.quantize.calibrate import state
from aiasst.quantize.calibrate.state import StepResult, WorkState, key_of, work_folder
from aiasst.quantize.grid import Grid, Quantized
from aiasst.quantize.ranges import InputRange
from tests.quantize import graphs

GRIDS = [Grid(4, 32), Grid(2, 64, zero_point=True), Grid(8, None, narrow=True)]


def _result() -> StepResult:
    matrices = {f"w{i}/odd name": rtn.quantize(graphs.random(6, 96, seed=i), grid) for i, grid in enumerate(GRIDS)}
    return StepResult(
        matrices | {"plain": graphs.random(3, 5).T},
        {"gamma": graphs.random(7)},
        {"a": InputRange(-1.25, 3.0), "b/c": InputRange(0.0, 0.0, graphs.random(5), by_row=True)},
        0.25,
    )


def _same(one: object, two: object) -> bool:
    if not isinstance(one, Quantized) or not isinstance(two, Quantized):
        return np.array_equal(np.asarray(one), np.asarray(two))
    zeros = one.zero_points is two.zero_points or np.array_equal(one.zero_points, two.zero_points)  # type: ignore[arg-type]
    return (
        one.grid == two.grid and np.array_equal(one.values, two.values) and np.array_equal(one.scales, two.scales)
    ) and zeros


def test_what_was_saved_is_there_for_the_next_process(tmp_path: Path) -> None:
    folder, saved = work_folder(tmp_path / "model"), _result()
    first = WorkState.open(folder, "a")
    assert not first.finished("layer-0")
    first.save("layer-0", saved)
    second = WorkState.open(folder, "a")
    assert second.finished("layer-0")
    assert not second.begun_anew
    assert not second.holds("another")
    for name, content in saved.matrices.items():
        assert second.holds(name)
        assert _same(second.matrix(name), content)
    np.testing.assert_array_equal(second.vectors()["gamma"], saved.vectors["gamma"])
    assert second.ranges() == saved.ranges
    np.testing.assert_array_equal(second.ranges()["b/c"].divisors, saved.ranges["b/c"].divisors)
    assert second.error("layer-0") == 0.25
    second.remove()
    assert not list(tmp_path.iterdir())


def test_another_key_begins_anew(tmp_path: Path) -> None:
    WorkState.open(tmp_path / "work", "a").save("layer-0", _result())
    other = WorkState.open(tmp_path / "work", "b")
    assert other.begun_anew
    assert not other.finished("layer-0")
    assert not other.holds("plain")
    assert not WorkState.open(tmp_path / "work", "b").begun_anew


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}"])
def test_a_folder_that_makes_no_sense_begins_anew(tmp_path: Path, damage: str) -> None:
    WorkState.open(tmp_path / "work", "a").save("layer-0", _result())
    (tmp_path / "work" / "key.json").write_text(damage)
    assert not WorkState.open(tmp_path / "work", "a").finished("layer-0")


def test_a_step_that_was_cut_short_did_not_happen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = WorkState.open(tmp_path / "work", "a")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state.np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        work.save("layer-0", _result())
    assert not work.finished("layer-0")
    again = WorkState.open(tmp_path / "work", "a")
    assert not again.finished("layer-0")
    assert not list((tmp_path / "work" / "done").iterdir())


@settings(max_examples=30)
@given(st.dictionaries(st.text(min_size=1), st.integers() | st.text() | st.none(), min_size=1), st.data())
def test_the_key_depends_on_the_parts_and_not_on_their_order(parts: dict[str, object], data: st.DataObject) -> None:
    assert key_of(parts) == key_of(dict(reversed(parts.items())))
    name = data.draw(st.sampled_from(sorted(parts)))
    assert key_of(parts) != key_of(parts | {name: [parts[name]]})
