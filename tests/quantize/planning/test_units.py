from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiasst.artifacts.model_folder import Role
from aiasst.artifacts.recipe import WeightFormat
from aiasst.quantize.matrix import Matrix
from aiasst.quantize.plan import make_plan
from aiasst.quantize.planning.mix import recipe_yaml
from aiasst.quantize.planning.units import Unit, candidate_cuts, columns_of, find_units, recipe_of, sizes


def _matrix(name: str, role: Role, layer: int | None, n: int = 256, k: int = 256, **uses: bool) -> Matrix:
    return Matrix(name, role, layer, n, k, rows_first=False, **uses)


def _model(layers: int = 3, cuts: Sequence[int] = ()) -> list[Matrix]:
    roles: tuple[Role, ...] = ("q", "k", "v", "o", "gate", "up", "down")
    weights = [_matrix(f"{role}{layer}", role, layer) for layer in range(layers) for role in roles]
    pieces = pairwise([0, *cuts, 1000])
    embedding = [
        replace(
            _matrix(f"embed{begin}", "embed", None, end - begin, multiplies=True, looks_up=True),
            first_row=begin, vocabulary=1000 if cuts else None,
        )
        for begin, end in pieces
    ]  # fmt: skip
    return [*embedding, *weights, _matrix("positions", "position_embed", None, multiplies=False, looks_up=True)]


def test_what_is_planned_together() -> None:
    units = find_units(_model(2), layers=2, opset=21)
    assert [unit.title for unit in units] == [
        "lm_head", "qkv 0", "o 0", "gate_up 0", "down 0", "qkv 1", "o 1", "gate_up 1", "down 1",
    ]  # fmt: skip
    assert [matrix.name for matrix in units[1].matrices] == ["q0", "k0", "v0"]
    assert units[1].roles == ("q", "k", "v")


def test_candidates_are_what_the_plan_would_do() -> None:
    head, qkv = find_units(_model(1), layers=1, opset=21)[:2]
    assert "w8a8" not in [candidate.label for candidate in head.candidates]
    assert [candidate.label for candidate in qkv.candidates] == [
        "int2-b128", "int2-b64", "int4-b256", "int4-b128", "int4-b128-zp", "int4-b64", "int4-b64-zp", "w8a8", "int8-b256",
        "int8-b128", "fp16", "fp32",
    ]  # fmt: skip
    assert qkv.candidates[-1].nbytes == 3 * 4 * 256 * 256
    small = find_units([_matrix("o", "o", 0, k=64)], layers=1, opset=21)[0]
    assert [c.label for c in small.candidates][:5] == ["int2-b64", "int4-b64", "int4-b64-zp", "w8a8", "int8-b64"]


def test_a_vocabulary_is_planned_in_pieces() -> None:
    units = find_units(_model(1, (250, 500)), layers=1, opset=21)
    assert [unit.title for unit in units[:4]] == ["lm_head 0-250", "lm_head 250-500", "lm_head 500-1000", "qkv 0"]
    int4, int8 = WeightFormat(format="int4", block_size=128), WeightFormat(format="int8", block_size=128)
    chosen = dict.fromkeys(units, int4) | {units[0]: int8, units[1]: int8}
    rules = recipe_of(units, chosen, name="planned", description="", algorithm="gptq").rules
    assert [(rule.roles, rule.rows, rule.use) for rule in rules] == [(("lm_head",), "first 500", int8)]


def test_where_a_vocabulary_may_be_cut() -> None:
    assert candidate_cuts(_matrix("head", "lm_head", None, 128256)) == (8016, 16032, 32064, 64128)
    assert candidate_cuts(_matrix("head", "lm_head", None, 1100)) == (275, 550)
    assert candidate_cuts(_matrix("head", "lm_head", None, 500)) == ()


def test_sizes_by_column() -> None:
    units = find_units(_model(1), layers=1, opset=21)
    columns = columns_of(units)
    nbytes, allowed = sizes(units, columns)
    assert nbytes[1, columns.index("fp16")] == 3 * 2 * 256 * 256
    assert not allowed[0, columns.index("w8a8")]
    assert allowed[1].all()


@settings(deadline=None, max_examples=30)
@given(st.data(), st.integers(1, 4), st.sampled_from([(), (100,), (62, 125, 250, 500)]))
def test_the_recipe_reproduces_the_plan(data: st.DataObject, layers: int, cuts: tuple[int, ...]) -> None:
    matrices = _model(layers, cuts)
    units = find_units(matrices, layers=layers, opset=21)
    chosen: dict[Unit, WeightFormat] = {
        unit: data.draw(st.sampled_from([candidate.spec for candidate in unit.candidates])) for unit in units
    }
    recipe = recipe_of(units, chosen, name="planned", description="a plan", algorithm="gptq")
    plan = make_plan(recipe, matrices, layers=layers, opset=21, others={}, table_bytes=0)
    for unit, spec in chosen.items():
        for matrix in unit.matrices:
            assert plan.format_of(matrix.name) == spec
    planned = sum(w.bytes_after for w in plan.weights if w.matrix.role != "position_embed")
    assert planned == sum(
        candidate.nbytes for unit in units for candidate in unit.candidates if candidate.spec == chosen[unit]
    )


def test_the_recipe_as_a_file_says_the_same(tmp_path: pytest.TempPathFactory) -> None:
    from pathlib import Path

    from aiasst.artifacts.recipe import load_recipe

    units = find_units(_model(3), layers=3, opset=21)
    random = np.random.default_rng(0)
    chosen = {unit: unit.candidates[random.integers(len(unit.candidates))].spec for unit in units}
    recipe = recipe_of(units, chosen, name="planned-4.50bpw", description="a plan", algorithm="gptq")
    file = Path(str(tmp_path)) / "recipe.yaml"
    file.write_text(recipe_yaml(recipe), encoding="utf-8")
    assert load_recipe(str(file)) == recipe
