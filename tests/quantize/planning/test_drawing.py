from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from aiasst.artifacts.recipe import Recipe, WeightFormat
from aiasst.cli import plan_view
from aiasst.quantize.planning import drawing
from aiasst.quantize.planning.mix import Cell, FrontPoint, PlannedMix, UniformPoint
from aiasst.quantize.planning.units import FORMATS

_LABELS = [spec.label for spec in FORMATS]


def _mix(layers: int, front: bool = True) -> PlannedMix:
    formats = [("int2-b64", 2.5), ("int4-b256", 4.1), ("int4-b64-zp", 4.5), ("int8-b128", 8.2), ("w8a8", 8.0)]
    cells = [Cell("embed", None, "fp16", 16.0, 1000, 0.0), Cell("lm_head", None, "int8-b128", 8.25, 1000, 0.001)]
    cells += [
        Cell(role, layer, *formats[(layer + len(role)) % 5], 1000, 0.001)
        for layer in range(layers)
        for role in ("qkv", "o", "gate_up", "down")
    ]
    recipe = Recipe(name="planned-4.50bpw", description="", default=WeightFormat(format="int4", block_size=128))
    best = tuple(FrontPoint(10**6 * bits, float(bits), 10.0**-bits) for bits in range(2, 9)) if front else ()
    alone = (UniformPoint("int4-b128", 4_400_000, 4.4, 0.02), UniformPoint("int8-b128", 8_300_000, 8.3, 0.0001))
    return PlannedMix(
        recipe, tuple(cells), best, 4_500_000, 4.5, 0.005, 0.95, measured=True, uniform=alone if front else ()
    )


@pytest.mark.parametrize("layers", [0, 1, 16, 80, 300])
def test_pictures_are_drawn_for_any_depth(tmp_path: Path, layers: int) -> None:
    from PIL import Image

    for file in drawing.draw(_mix(layers, front=layers > 0), tmp_path / "plan.png"):
        with Image.open(file) as image:
            assert image.format == "PNG"
            assert min(image.size) > 200
            assert image.width <= 1600
            assert len(image.convert("RGB").getcolors(1 << 24) or []) > 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plan-front.png", "plan.png"]


def test_the_picture_of_a_deep_model_shows_every_layer() -> None:
    grid = drawing.Grid.of(_mix(80).cells)
    bands = grid.bands(26)
    assert [layer for band in bands for layer in band] == list(range(80))
    assert {len(band) for band in bands} == {20}
    assert grid.roles == ("qkv", "o", "gate_up", "down")
    assert ([cell.role for cell in grid.before], [cell.role for cell in grid.after]) == (["embed"], ["lm_head"])


def test_formats_have_colours_and_names_of_their_own() -> None:
    assert len({drawing.colour(label) for label in _LABELS}) == len(_LABELS)
    assert [drawing.short_label(label) for label in _LABELS] == [
        "2/128", "2/64", "4/256", "4/128", "4z128", "4/64", "4z64", "w8", "8/256", "8/128", "16", "32",
    ]  # fmt: skip


def test_what_is_written_on_a_colour_can_be_read() -> None:
    assert drawing.contrast("#000000", "#ffffff") == pytest.approx(21)
    assert drawing.contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
    assert drawing.ink("#4a4a4a") == "#ffffff"
    assert drawing.ink("#f5d76e") == "#000000"
    for label in [*_LABELS, "unheard-of"]:
        assert drawing.contrast(drawing.ink(drawing.colour(label)), drawing.colour(label)) >= 4.5


def test_the_key_adds_up() -> None:
    cells = [Cell("o", 0, "int4-b64", 4.0, 500, 0.0), Cell("o", 1, "int4-b64", 5.0, 625, 0.0)]
    cells.append(Cell("o", 2, "int2-b64", 2.0, 500, 0.0))
    assert drawing.key_of(cells) == [("int2-b64", 2.0, 0.5), ("int4-b64", 4.5, 0.5)]


def test_names_do_not_touch_and_stay_inside() -> None:
    assert drawing.apart([1, 20, 40], 5, 100) == [1, 20, 40]
    assert drawing.apart([10, 11, 12], 5, 100) == [10, 15, 20]
    assert drawing.apart([60, 97, 98, 99], 5, 100) == [60, 90, 95, 100]
    assert drawing.apart([], 5, 100) == []


def _plain(lines: list[str]) -> list[str]:
    from rich.text import Text

    return [Text.from_markup(line).plain for line in lines]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_terminal_pictures_fit_the_width(width: int) -> None:
    mix = _mix(30)
    lines = _plain(plan_view._grid(mix, width))
    grid = lines[: len(lines) - len(drawing.key_of(mix.cells))]
    assert max(map(len, grid)) <= width
    for label in {cell.label for cell in mix.cells}:
        written = sum(line.split().count(drawing.short_label(label)) for line in grid if "layer" not in line)
        assert written == sum(cell.label == label for cell in mix.cells)


def test_without_colours_formats_stand_below_their_layers() -> None:
    lines = _plain(plan_view._grid(_mix(12), 200))
    assert lines[0].split() == ["embed", "16"]
    layers = next(line for line in lines if line.startswith("layer"))
    down = next(line for line in lines if line.startswith("down"))
    written = {cell.layer: drawing.short_label(cell.label) for cell in _mix(12).cells if cell.role == "down"}
    for layer, label in written.items():
        assert down[layers.index(f" {layer} ") + 1 :].split()[0] == label
    assert any(line.split() == ["head", "8/128"] for line in lines)
    assert any(line.split()[:4] == ["4z64", "int4-b64-zp", "4.50", "bits"] for line in lines)


def test_the_front_names_what_the_plan_is_compared_with() -> None:
    front = _plain(plan_view._front(_mix(2)))
    canvas, table = front[:12], front[-3:]
    assert sum(line.count("★") for line in canvas) == 1
    assert sum(line.count("•") for line in canvas) == 7
    assert [sum(line.split("│")[1].count(letter) for line in canvas) for letter in "ab"] == [1, 1]
    assert [line.split()[:3] for line in table] == [
        ["★", "this", "plan"], ["a", "int4-b128", "4.40"], ["b", "int8-b128", "8.30"]
    ]  # fmt: skip
    assert plan_view._front(_mix(2, front=False)) == []
    crowd = tuple(UniformPoint(f"int4-b{block}", 4_500_000, 4.5, 0.005) for block in (64, 128, 256))
    crowded = _plain(plan_view._front(replace(_mix(2), uniform=crowd)))[:12]
    assert [sum(line.split("│")[1].count(mark) for line in crowded) for mark in "★abc"] == [1, 1, 1, 1]
    assert [row["format"] for row in plan_view._mix_document(_mix(2))["uniform"]] == ["int4-b128", "int8-b128"]
