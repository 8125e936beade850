from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from aiasst.artifacts.recipe import FLOAT_ROLES, Recipe, Rule, WeightFormat, load_recipe, shipped_recipes
from aiasst.errors import ArtifactError

INT4: dict[str, Any] = {"format": "int4", "block_size": 128}
RECIPE: dict[str, Any] = {"name": "mine", "description": "", "default": INT4}


def _write(path: Path, content: object) -> str:
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_the_shipped_recipes_are_those_the_documents_name() -> None:
    assert set(shipped_recipes()) == {"int8", "int4", "int4-fast", "int2-experimental", "w8a8", "w8a8-static", "mixed"}


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_a_shipped_recipe_is_complete(name: str) -> None:
    """Every key of the schema stands in the file, so that a copy of it shows all there is to set."""
    recipe = load_recipe(name)
    assert recipe.name == name
    written = yaml.safe_load(shipped_recipes()[name].read_text())
    assert set(written) == set(Recipe.model_fields)
    if recipe.default.block_size is not None:
        assert set(written["default"]) == set(WeightFormat.model_fields)


def test_every_key_is_explained_in_the_default_recipe() -> None:
    lines = shipped_recipes()["int4"].read_text().splitlines()
    for key in [*Recipe.model_fields, *WeightFormat.model_fields]:
        place = next(i for i, line in enumerate(lines) if line.strip().startswith(f"{key}:"))
        assert lines[place - 1].strip().startswith("#"), key


@pytest.mark.parametrize(
    ("layers", "matching"),
    [
        (None, [0, 1, 2, 3, 4, 5]),
        ("first 2", [0, 1]),
        ("last 1", [5]),
        ("first 1 and last 2", [0, 4, 5]),
        ([1, -1], [1, 5]),
        ([0, 9], [0]),
    ],
)
def test_layers_are_counted_from_both_ends(layers: Any, matching: list[int]) -> None:
    rule = Rule.parse({"layers": layers, "use": INT4}, "rule")
    assert [layer for layer in range(6) if rule.matches("o", layer, 6)] == matching
    assert rule.matches("lm_head", None, 6) == (layers is None)


def test_rules_of_roles_match_those_roles_alone() -> None:
    rule = Rule.parse({"roles": ["down", "lm_head"], "use": INT4}, "rule")
    assert [role for role in ("down", "o", "lm_head") if rule.matches(role, None, 6)] == ["down", "lm_head"]


def test_rows_of_a_vocabulary_have_rules_of_their_own() -> None:
    rules = [
        {"roles": ["embed", "lm_head"], "rows": "first 25%", "use": {"format": "w8a8"}},
        {"roles": ["lm_head"], "rows": "first 10", "use": {"format": "fp16"}},
    ]
    recipe = Recipe.parse(RECIPE | {"rules": rules}, "recipe")
    assert recipe.row_cuts("lm_head", 1000) == (10, 250)
    assert recipe.row_cuts("embed", 1000) == (250,)
    assert recipe.row_cuts("o", 1000) == ()
    assert recipe.row_cuts("lm_head", 10) == (2,)
    formats = [recipe.format_of("lm_head", None, 6, (end, 1000)).format for end in (10, 250, 1000)]
    assert formats == ["fp16", "w8a8", "int4"]
    assert recipe.format_of("embed", None, 6, (1000, 1000)).format == "int4"
    assert recipe.format_of("lm_head", None, 6, (5, 5)).format == "fp16"


def test_labels_are_short_and_tell_all() -> None:
    assert WeightFormat(format="int4", block_size=64, zero_point=True).label == "int4-b64-zp"
    assert WeightFormat(format="w8a8").label == "w8a8"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"defualt": INT4}, "unknown key 'defualt'"),
        ({"default": {"format": "int4"}}, "block_size"),
        ({"default": {"format": "int4", "block_size": 100}}, "32, 64, 128, 256"),
        ({"default": {"format": "int2", "block_size": 256}}, "32, 64, 128"),
        ({"default": {"format": "w8a8", "block_size": 128}}, "neither block_size nor zero_point"),
        ({"default": {"format": "int3", "block_size": 128}}, "int2"),
        ({"rules": [{"roles": ["head"], "use": INT4}]}, "rules.0.roles.0"),
        ({"rules": [{"layers": "middle 2", "use": INT4}]}, "first N"),
        ({"rules": [{"roles": ["norm"], "use": INT4}]}, "always stay fp32"),
        ({"schema_version": 2}, "schema_version"),
        ({"rules": [{"roles": ["lm_head"], "rows": "last 5", "use": INT4}]}, "first P%"),
        ({"rules": [{"roles": ["lm_head"], "rows": "first -5%", "use": INT4}]}, "first P%"),
        ({"rules": [{"roles": ["o"], "rows": "first 5", "use": INT4}]}, "rows are those of embed and lm_head"),
        ({"rules": [{"rows": "first 5", "use": INT4}]}, "rows are those of embed and lm_head"),
        ({"rules": [{"roles": ["embed"], "layers": "first 1", "rows": "first 5", "use": INT4}]}, "no layers"),
    ],
)
def test_a_mistake_in_a_recipe_is_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        load_recipe(_write(tmp_path / "mine.yaml", RECIPE | change))
    assert words in caught.value.message
    assert "mine.yaml" in caught.value.message


def test_a_recipe_of_ones_own_is_read(tmp_path: Path) -> None:
    assert load_recipe(_write(tmp_path / "mine.yaml", RECIPE)).default.label == "int4-b128"


def test_a_wrong_name_lists_the_right_ones() -> None:
    with pytest.raises(ArtifactError) as caught:
        load_recipe("int5")
    assert "int4-fast" in caught.value.hint


def test_broken_yaml_and_absent_files_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(ArtifactError, match="not valid YAML"):
        load_recipe(str(tmp_path / "broken.yaml"))
    with pytest.raises(ArtifactError, match="there is no recipe"):
        load_recipe(str(tmp_path / "absent.yaml"))


def test_norms_cannot_be_named_and_tables_stay_unless_they_are() -> None:
    for role in ("norm", "bias", "rotary"):
        with pytest.raises(ArtifactError):
            Rule.parse({"roles": [role], "use": INT4}, "rule")
    anything = Rule(use=WeightFormat(format="int8", block_size=64))
    named = Rule(roles=("position_embed",), use=WeightFormat(format="int4", block_size=64))
    for rules, label in (((anything,), "fp32"), ((anything, named), "int4-b64"), ((named, anything), "int4-b64")):
        recipe = Recipe(name="test", description="", default=WeightFormat(format="w8a8"), rules=rules)
        assert recipe.format_of("position_embed", None, 6).label == label
        assert recipe.format_of("type_embed", None, 6).label == "fp32"
        assert recipe.format_of("up", 0, 6).label == "int8-b64"
    assert {"position_embed", "type_embed"} < FLOAT_ROLES


def test_blocks_become_smaller_before_much_is_padded() -> None:
    spec = WeightFormat(format="int4", block_size=256)
    assert (spec.padded(576), spec.padded(512)) == (768, 512)
    assert spec.fitting(512) == spec
    assert spec.fitting(576) == WeightFormat(format="int4", block_size=128)
    assert spec.fitting(40) == WeightFormat(format="int4", block_size=32)
    w8a8 = WeightFormat(format="w8a8")
    assert (w8a8.padded(577), w8a8.fitting(577)) == (577, w8a8)
