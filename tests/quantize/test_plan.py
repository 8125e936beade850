from __future__ import annotations

import pytest

from aiasst.artifacts.model_folder import Role, Weight
from aiasst.artifacts.recipe import Recipe, Rule, WeightFormat, load_recipe, shipped_recipes
from aiasst.quantize.matrix import Matrix
from aiasst.quantize.plan import Plan, make_plan

INT4 = WeightFormat(format="int4", block_size=128)
INT8 = WeightFormat(format="int8", block_size=128)


def _matrix(name: str, role: Role, layer: int | None, n: int, k: int, **uses: bool) -> Matrix:
    return Matrix(name, role, layer, n, k, rows_first=False, **uses)


def _plan(recipe: Recipe, *matrices: Matrix, opset: int = 21, others: dict[str, Weight] | None = None) -> Plan:
    return make_plan(recipe, matrices, layers=4, opset=opset, others=others or {}, table_bytes=0)


def _recipe(default: WeightFormat, *rules: Rule) -> Recipe:
    return Recipe(name="t", description="", default=default, rules=rules)


def test_the_last_matching_rule_decides() -> None:
    recipe = _recipe(INT4, Rule(roles=("down",), use=INT8), Rule(layers="first 1", use=WeightFormat(format="w8a8")))
    plan = _plan(recipe, *(_matrix(f"{r}{i}", r, i, 256, 256) for r in ("o", "down") for i in (0, 1)))
    assert [w.chosen.label for w in plan.weights] == ["w8a8", "int4-b128", "w8a8", "int8-b128"]


def test_bits_per_weight_count_everything_but_rotary_tables() -> None:
    others = {
        "norm.weight": Weight(role="norm", layer=None, shape=(256,), format="fp32", bytes=1024),
        "rotary.cos": Weight(role="rotary", layer=None, shape=(64, 64), format="fp32", bytes=16384),
        "lm_head.weight": Weight(
            role="lm_head", layer=None, shape=(256, 256), format="fp32", bytes=0, shared_with="embed_tokens.weight"
        ),
    }
    plan = _plan(_recipe(INT4), _matrix("a", "o", 0, 256, 256), others=others)
    packed = 256 * (128 + 2 * 4)
    assert plan.parameters == 256 * 256 + 256
    assert plan.bits_per_weight == pytest.approx(8 * (packed + 1024) / plan.parameters)
    assert plan.bytes_after == packed + 1024 + 16384
    assert plan.bytes_before == 4 * 256 * 256 + 1024 + 16384


def test_an_embedding_falls_back_from_w8a8_with_the_reason() -> None:
    w8a8 = _recipe(WeightFormat(format="w8a8"))
    plan = _plan(w8a8, _matrix("embed_tokens.weight", "embed", None, 1000, 256, multiplies=False, looks_up=True))
    (weight,) = plan.weights
    assert weight.chosen == INT8
    assert "embedding" in weight.reason


@pytest.mark.parametrize(
    ("block", "k", "chosen"),
    [(128, 576, 128), (256, 896, 256), (256, 576, 128), (128, 172, 64), (256, 64, 64), (128, 40, 32), (128, 256, 128)],
)
def test_blocks_shrink_where_padding_would_be_more_than_a_quarter(block: int, k: int, chosen: int) -> None:
    wanted = WeightFormat(format="int4", block_size=block, zero_point=True)
    (weight,) = _plan(_recipe(wanted), _matrix("a", "o", 0, 64, k)).weights
    assert weight.chosen == wanted.model_copy(update={"block_size": chosen})
    assert bool(weight.reason) == (chosen != block)


def test_padding_that_eats_the_gain_leaves_the_weight_alone() -> None:
    (weight,) = _plan(_recipe(INT8), _matrix("a", "other", None, 100, 8)).weights
    assert weight.chosen.format == "fp32"
    assert weight.bytes_after == weight.bytes_before
    assert "not be smaller" in weight.reason


@pytest.mark.parametrize("role", ["position_embed", "type_embed"])
def test_small_embeddings_stay_fp32(role: Role) -> None:
    (weight,) = _plan(_recipe(INT4), _matrix("p", role, None, 512, 256, multiplies=False, looks_up=True)).weights
    assert weight.chosen.format == "fp32"
    assert not weight.reason


def test_a_tied_head_follows_the_rule_of_the_head() -> None:
    recipe = _recipe(INT4, Rule(roles=("lm_head",), use=INT8))
    (weight,) = _plan(recipe, _matrix("embed_tokens.weight", "embed", None, 99, 256, looks_up=True)).weights
    assert weight.chosen == INT8


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
@pytest.mark.parametrize("k", [172, 256, 576, 896])
def test_every_shipped_recipe_plans_every_width(name: str, k: int) -> None:
    recipe = load_recipe(name)
    roles: list[Role] = ["qkv", "o", "gate_up", "down"]
    layers = [_matrix(f"layers.{i}.{r}", r, i, 105, k) for i in range(4) for r in roles]
    tied = _matrix("embed_tokens.weight", "embed", None, 105, k, looks_up=True)
    plan = _plan(recipe, *layers, tied)
    assert all(w.chosen.format == w.wanted.format for w in plan.weights)
    assert plan.bytes_after < 0.36 * plan.bytes_before
