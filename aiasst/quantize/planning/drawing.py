"""The plan as a picture: bits by layer and role, and the size-accuracy front. Writes PNG files; decides nothing."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aiasst.artifacts.model_folder import disk_errors
from aiasst.errors import MissingExtraError, UsageError
from aiasst.quantize.planning.mix import Cell, PlannedMix

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Format → colour: warm where bits are saved, cool where they are spent.
_COLOURS = {
    "int2": "#d9534f", "int4": "#f0ad4e", "int8": "#5b9bd5", "w8a8": "#4fb3a5", "fp16": "#7d6bb0", "fp32": "#4a4a4a",
}  # fmt: skip
# A larger block saves bits and time: paler.
_PALE = {"256": 0.45, "128": 0.22}
# With zero points: a little darker.
_ZERO_POINT = 0.9
_ROLES = ("embed", "qkv", "o", "gate_up", "down", "lm_head")
_MOST_LABELS = 40
_DPI = 150
_OUTSIDE = "–"


def bits_picture(mix: PlannedMix, file: Path) -> None:
    """Bits by layer and role, as a heat map.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ResourceError: the file cannot be written.
        UsageError: its name does not end in .png.
    """
    rows, layers, grid = grid_of(mix.cells)
    figure, axes = _figure(max(6.0, 0.42 * len(layers) + 2.4), 0.55 * len(rows) + 2.0)
    for y, row in enumerate(rows):
        for x, layer in enumerate(layers):
            cell = grid.get((row, layer))
            if cell is not None:
                _square(axes, x, y, cell, written=len(layers) <= _MOST_LABELS)
    axes.set_xlim(-0.5, len(layers) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [row.replace("_", " + ") if row == "gate_up" else row for row in rows])
    step = max(1, len(layers) // 20)
    axes.set_xticks(
        range(0, len(layers), step),
        [_OUTSIDE if layers[i] is None else str(layers[i]) for i in range(0, len(layers), step)],
    )
    axes.set_xlabel("layer")
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    _title(axes, mix)
    _legend(axes, mix.cells)
    _save(figure, file)


def front_picture(mix: PlannedMix, file: Path) -> None:
    """Loss over size of the best plans, the chosen one marked. Raises as `bits_picture`."""
    figure, axes = _figure(7.0, 4.4)
    points = [point for point in mix.front if point.loss > 0]
    axes.plot(
        [point.bits_per_weight for point in points], [point.loss for point in points],
        color="#5b9bd5", marker="o", markersize=4, linewidth=1.6, label="best plan of each size",
    )  # fmt: skip
    if mix.predicted_kl > 0:
        axes.plot(
            [mix.bits_per_weight], [mix.predicted_kl],
            color="#d9534f", marker="*", markersize=17, linestyle="none", label="this plan", zorder=3,
        )  # fmt: skip
        axes.annotate(
            f"{mix.bits_per_weight:.2f} bits, {_size(mix.nbytes)}\nKL {mix.predicted_kl:.2g}",
            (mix.bits_per_weight, mix.predicted_kl), xytext=(12, 10), textcoords="offset points", fontsize=9,
        )  # fmt: skip
    axes.set_yscale("log")
    axes.set_xlabel("bits per weight, everything included")
    axes.set_ylabel("KL divergence from the original (nats per token)")
    axes.grid(visible=True, which="major", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    axes.set_title("Size and accuracy", loc="left", fontsize=12, fontweight="bold")
    _save(figure, file)


def grid_of(cells: Sequence[Cell]) -> tuple[list[str], list[int | None], dict[tuple[str, int | None], Cell]]:
    """(roles, layers, cell by role and layer); what lies in no layer comes first."""
    layers: list[int | None] = [*sorted({cell.layer for cell in cells if cell.layer is not None})]
    if any(cell.layer is None for cell in cells):
        layers.insert(0, None)
    roles = dict.fromkeys(cell.role for cell in cells)
    rows = [role for role in _ROLES if role in roles] + [role for role in roles if role not in _ROLES]
    return rows, layers, {(cell.role, cell.layer): cell for cell in cells}


def front_file(file: Path) -> Path:
    """Where the second picture goes: `plan.png` → `plan-front.png`."""
    return file.with_name(f"{file.stem}-front{file.suffix}")


def draw(mix: PlannedMix, file: Path) -> tuple[Path, Path]:
    """Both pictures: `file`, and beside it `front_file(file)`. Raises as `bits_picture`."""
    bits_picture(mix, file)
    front_picture(mix, front_file(file))
    return file, front_file(file)


def check_file(file: Path) -> None:
    """Called before the work begins. Raises UsageError and MissingExtraError where no picture could be drawn."""
    if file.suffix.lower() != ".png":
        raise UsageError(f"{file} is no PNG", "give a file name that ends in .png")
    if not file.resolve().parent.is_dir():
        raise UsageError(f"there is no folder {file.parent} for {file.name}", "make it, or choose another file")
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "convert")


def _figure(width: float, height: float) -> tuple[Any, Axes]:
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "convert")
    # Its own canvas: no window system, and no state of a process that others may use.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _square(axes: Axes, x: int, y: int, cell: Cell, *, written: bool) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((x - 0.47, y - 0.46), 0.94, 0.92, facecolor=colour(cell.label), edgecolor="none"))
    if written:
        dark = cell.label.startswith(("fp", "int8", "w8a8", "int2"))
        axes.text(
            x, y, f"{cell.bits:.1f}", ha="center", va="center", fontsize=7.5, color="white" if dark else "#222222"
        )


def colour(label: str) -> str:
    """Hex colour of a format; blocks of more weights are paler."""
    name, _, rest = label.partition("-b")
    rgb = np.array([int(_COLOURS.get(name, "#999999")[i : i + 2], 16) for i in (1, 3, 5)])
    mixed = rgb + (255 - rgb) * _PALE.get(rest.removesuffix("-zp"), 0.0)
    mixed = (mixed * (_ZERO_POINT if rest.endswith("-zp") else 1.0)).round().astype(int)
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def _title(axes: Axes, mix: PlannedMix) -> None:
    text = f"{mix.bits_per_weight:.2f} bits per weight, {_size(mix.nbytes)}, predicted KL {mix.predicted_kl:.2g}"
    axes.set_title(text, loc="left", fontsize=11, fontweight="bold")


def _legend(axes: Axes, cells: Sequence[Cell]) -> None:
    from matplotlib.patches import Patch

    bits = {cell.label: cell.bits for cell in cells}
    labels = sorted(bits, key=lambda label: bits[label])
    handles = [Patch(facecolor=colour(label), label=label) for label in labels]
    axes.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=9, borderaxespad=0.0
    )


def _save(figure: Any, file: Path) -> None:
    partial = file.with_name(f".{file.name}.partial")
    with disk_errors(file):
        try:
            figure.savefig(partial, format="png", facecolor="white")
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
