from __future__ import annotations

from pathlib import Path

import pytest

from aiasst.artifacts.recipe import Recipe, WeightFormat
from aiasst.cli import plan_view
from aiasst.errors import MissingExtraError, UsageError
from aiasst.quantize.planning import drawing
from aiasst.quantize.planning.mix import Cell, FrontPoint, PlannedMix


def _mix(layers: int) -> PlannedMix:
    formats = [("int2-b64", 2.5), ("int4-b256", 4.1), ("int4-b64", 4.5), ("int8-b128", 8.2), ("w8a8", 8.0)]
    cells = [Cell("lm_head", None, "int8-b128", 8.25, 1000, 0.001)]
    cells += [
        Cell(role, layer, *formats[(layer + len(role)) % 5], 1000, 0.001)
        for layer in range(layers)
        for role in ("qkv", "o", "gate_up", "down")
    ]
    front = tuple(FrontPoint(10**6 * bits, float(bits), 10.0**-bits) for bits in range(2, 9))
    recipe = Recipe(name="planned-4.50bpw", description="", default=WeightFormat(format="int4", block_size=128))
    return PlannedMix(recipe, tuple(cells), front, 4_500_000, 4.5, 0.005, 0.95, measured=True)


@pytest.mark.parametrize("layers", [1, 16, 60])
def test_pictures_are_drawn_for_any_depth(tmp_path: Path, layers: int) -> None:
    from PIL import Image

    for file in drawing.draw(_mix(layers), tmp_path / "plan.png"):
        with Image.open(file) as image:
            assert image.format == "PNG"
            assert min(image.size) > 200
            assert len(image.convert("RGB").getcolors(1 << 24) or []) > 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plan-front.png", "plan.png"]


def test_no_picture_is_promised_that_cannot_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no PNG"):
        drawing.check_file(tmp_path / "plan.jpg")
    with pytest.raises(UsageError, match="no folder"):
        drawing.check_file(tmp_path / "absent" / "plan.png")
    drawing.check_file(tmp_path / "plan.png")
    monkeypatch.setattr(drawing.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="matplotlib"):
        drawing.check_file(tmp_path / "plan.png")


def test_formats_have_colours_of_their_own() -> None:
    labels = ["int2-b64", "int2-b128", "int4-b64", "int4-b128", "int4-b256", "int8-b128"]
    labels += ["int4-b64-zp", "int4-b128-zp", "int8-b256", "w8a8", "fp16", "fp32"]
    assert len({drawing.colour(label) for label in labels}) == len(labels)


def test_terminal_pictures_fit_the_width() -> None:
    from rich.text import Text

    for width in (40, 80, 200):
        lines = [Text.from_markup(line).plain for line in plan_view._grid(_mix(30), width)[:-1]]
        assert max(map(len, lines)) <= width
        assert sum(line.count("4.1") for line in lines) == sum(cell.bits == 4.1 for cell in _mix(30).cells)
    front = [Text.from_markup(line).plain for line in plan_view._front(_mix(2))]
    assert sum(line.count("★") for line in front) == 1
    assert sum(line.count("•") for line in front) == 7
