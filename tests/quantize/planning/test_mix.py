from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from aiasst.artifacts.model_folder import Role
from aiasst.artifacts.recipe import Recipe, Rule, WeightFormat
from aiasst.quantize.matrix import Matrix
from aiasst.quantize.plan import make_plan
from aiasst.quantize.planning.mix import UniformPoint, uniform_points
from aiasst.quantize.planning.units import columns_of, find_units, sizes


def _matrices(k: int, *, tied: bool = True) -> list[Matrix]:
    roles: tuple[Role, ...] = ("q", "k", "v", "o", "gate", "up", "down")
    found = [Matrix(f"{role}{layer}", role, layer, 128, k, rows_first=False) for layer in range(2) for role in roles]
    embedding = Matrix("embed", "embed", None, 500, k, rows_first=True, multiplies=tied, looks_up=True)
    return [embedding, *found, *([] if tied else [Matrix("head", "lm_head", None, 500, k, rows_first=True)])]


def _points(matrices: list[Matrix], opset: int = 21) -> tuple[UniformPoint, ...]:
    units = find_units(matrices, layers=2, opset=opset)
    columns = columns_of(units)
    nbytes, _ = sizes(units, columns)
    losses = 1 / (1.0 + nbytes)

    def taken(choice: npt.NDArray[np.int64]) -> int:
        return int(nbytes[np.arange(len(choice)), choice].sum())

    return uniform_points(units, columns, losses, taken, lambda choice: taken(choice) / 1000)


def _recipe_bytes(matrices: list[Matrix], spec: WeightFormat, head: int, opset: int = 21) -> int:
    rule = Rule(roles=("embed", "lm_head"), use=WeightFormat(format="int8", block_size=head))
    recipe = Recipe(name="uniform", description="", default=spec, rules=(rule,))
    return make_plan(recipe, matrices, layers=2, opset=opset, others={}, table_bytes=0).bytes_after


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("opset", [13, 21])
@pytest.mark.parametrize("k", [2, 24, 64, 96, 256, 640])
def test_uniform_points_are_what_recipes_come_to(k: int, opset: int, tied: bool) -> None:
    matrices = _matrices(k, tied=tied)
    points = _points(matrices, opset)
    wanted = {
        _recipe_bytes(matrices, WeightFormat(format="int8", block_size=128), 128, opset),
        *(
            _recipe_bytes(matrices, WeightFormat(format="int4", block_size=block), head, opset)
            for block, head in ((64, 128), (128, 128), (256, 256))
        ),
    }
    assert [point.nbytes for point in points] == sorted(wanted)
    assert [point.bits_per_weight for point in points] == [point.nbytes / 1000 for point in points]
    assert [point.loss for point in points] == sorted((point.loss for point in points), reverse=True)


def test_each_uniform_point_has_the_name_of_its_format() -> None:
    assert [point.label for point in _points(_matrices(256))] == ["int4-b256", "int4-b128", "int4-b64", "int8-b128"]
    # With 64 inputs all blocks are of 64 weights, and there is one 4-bit plan.
    assert [point.label for point in _points(_matrices(64))] == ["int4-b64", "int8-b128"]
