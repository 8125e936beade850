"""The plan as a picture: formats by layer and role, and the size-accuracy front. Writes PNG files; decides nothing."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from aiasst.artifacts.document import written_whole
from aiasst.artifacts.model_folder import disk_errors
from aiasst.errors import MissingExtraError
from aiasst.quantize.planning.budget import similarity_of_error
from aiasst.quantize.planning.mix import Cell, FrontPoint, PlannedMix, UniformPoint
from aiasst.sizes import human_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Format → colour: warm where bits are saved, cool where they are spent.
_COLOURS = {
    "int2": "#d9483b", "int2-zp": "#b5467f", "int4": "#f28e2b", "int4-zp": "#d6b91f", "int8": "#4a8ccb", "int8-zp": "#6673c9",
    "w8a8": "#3fa796", "fp16": "#8466ad", "fp32": "#4a4a4a",
}  # fmt: skip
# A larger block saves bits and time: paler.
_PALE = {"256": 0.65, "128": 0.4, "64": 0.12}
_ROLES = ("embed", "qkv", "q", "k", "v", "o", "gate_up", "gate", "up", "down", "lm_head")
_NAMES = {"lm_head": "head", "gate_up": "gate + up"}
_DPI = 150

# Of the picture of layers, in pixels.
_WIDEST, _NARROWEST = 1600, 1060
_MARGIN, _GAP = 30, 14
_CELL_WIDTHS = (46, 84)
"""Narrowest that a format is written on, and widest."""
_SIDE_WIDTH, _ROW_HEIGHT, _TICK_HEIGHT, _BAND_GAP = 84, 52, 40, 18
_TITLE_HEIGHT, _KEY_WIDTH, _KEY_HEIGHT = 124, 470, 42
_MOST_BANDS = 6
_SMALLEST_TEXT, _TEXT, _TITLE = 6.5, 9.0, 12.5
"""In points."""
_PIXELS_A_LETTER = 0.64 * _DPI / 72
"""Width of a digit over the size of its font; letters are narrower on average."""
_DARK, _DIM = "#1a1a1a", "#5c5c5c"

# Of the front, in inches.
_FRONT_SIZE = (8.4, 5.4)
_LINE, _STAR = "#3f7fbf", "#d0342c"


# ---------------------------------------------------------------------- what is shown


@dataclass(frozen=True)
class Grid:
    """The cells of a plan by place."""

    roles: tuple[str, ...]
    """Rows."""
    layers: tuple[int, ...]
    """Columns."""
    cells: Mapping[tuple[str, int], Cell]
    before: tuple[Cell, ...]
    """What lies before the layers: the embedding."""
    after: tuple[Cell, ...]
    """What lies in no layer otherwise: the head."""

    @classmethod
    def of(cls, cells: Sequence[Cell]) -> Grid:
        """The cells of one plan, rows in the order of the computation."""
        roles = dict.fromkeys(cell.role for cell in cells if cell.layer is not None)
        outside = [cell for cell in cells if cell.layer is None]
        return cls(
            roles=tuple(role for role in _ROLES if role in roles) + tuple(role for role in roles if role not in _ROLES),
            layers=tuple(sorted({cell.layer for cell in cells if cell.layer is not None})),
            cells={(cell.role, cell.layer): cell for cell in cells if cell.layer is not None},
            before=tuple(cell for cell in outside if cell.role == "embed"),
            after=tuple(cell for cell in outside if cell.role != "embed"),
        )

    def bands(self, most: int) -> list[tuple[int, ...]]:
        """The layers in as few parts of at most `most` as will do, about as long as each other."""
        count = max(1, -(-len(self.layers) // max(1, most)))
        return [tuple(part.tolist()) for part in np.array_split(np.array(self.layers, dtype=np.int64), count)]


def role_name(role: str) -> str:
    """What a row or column of a picture is called."""
    return _NAMES.get(role, role)


def cell_name(cell: Cell) -> str:
    """What a cell outside the layers is called: its role, and of a vocabulary that was cut the tokens up to which it goes."""
    return role_name(cell.role) + (f" <{cell.tokens[1]:,}" if cell.tokens else "")


def short_label(label: str) -> str:
    """A format in at most five letters, for a cell: 4/128 (with zero points 4z128), w8, 16."""
    name, _, rest = label.partition("-b")
    if not rest:
        return {"w8a8": "w8", "fp16": "16", "fp32": "32"}.get(name, name)
    return name.removeprefix("int") + ("z" if rest.endswith("-zp") else "/") + rest.removesuffix("-zp")


def key_of(cells: Sequence[Cell]) -> list[tuple[str, float, float]]:
    """(label, bits per weight, share of all planned weights) of each format in use, fewest bits first."""
    nbytes: dict[str, float] = {}
    weights: dict[str, float] = {}
    for cell in cells:
        nbytes[cell.label] = nbytes.get(cell.label, 0.0) + cell.nbytes
        weights[cell.label] = weights.get(cell.label, 0.0) + 8 * cell.nbytes / cell.bits
    every = sum(weights.values())
    return sorted(
        ((label, 8 * nbytes[label] / weights[label], weights[label] / every) for label in nbytes),
        key=lambda row: row[1],
    )


def colour(label: str) -> str:
    """Hex colour of a format; blocks of more weights are paler."""
    name, _, rest = label.partition("-b")
    block = rest.removesuffix("-zp")
    rgb = _channels(_COLOURS.get(name if rest == block else f"{name}-zp", "#999999"))
    mixed = (rgb + (255 - rgb) * _PALE.get(block, 0.0)).round().astype(int)
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def ink(background: str) -> str:
    """Black or white, whichever stands out more; one of them always has a contrast of 4.58 or more."""
    return max("#000000", "#ffffff", key=lambda letters: contrast(letters, background))


def contrast(first: str, second: str) -> float:
    """Contrast of two hex colours, 1 … 21; text wants 4.5 (Web Content Accessibility Guidelines 2.1, 1.4.3)."""
    dark, light = sorted((_luminance(first), _luminance(second)))
    return (light + 0.05) / (dark + 0.05)


def _luminance(hexadecimal: str) -> float:
    """Relative, 0 … 1, of an sRGB colour (the same guidelines)."""
    channels = _channels(hexadecimal) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def _channels(hexadecimal: str) -> npt.NDArray[np.float64]:
    """[red, green, blue], 0 … 255."""
    return np.array([int(hexadecimal[i : i + 2], 16) for i in (1, 3, 5)], dtype=np.float64)


# ---------------------------------------------------------------------- files


def draw(mix: PlannedMix, file: Path) -> tuple[Path, Path]:
    """Both pictures: `file`, and beside it `front_file(file)`. Raises as `bits_picture`."""
    bits_picture(mix, file)
    front_picture(mix, front_file(file))
    return file, front_file(file)


def front_file(file: Path) -> Path:
    """Where the second picture goes: `plan.png` → `plan-front.png`."""
    return file.with_name(f"{file.stem}-front{file.suffix}")


def _figure(width: float, height: float, *, arranged: bool) -> Any:
    """An empty figure of so many inches; `arranged`: what is on it finds room by itself."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "convert")
    # Its own canvas: no window system, and no state of a process that others may use.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained" if arranged else None)
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, file: Path) -> None:
    with disk_errors(file), written_whole(file) as partial:
        figure.savefig(partial, format="png", facecolor="white")


# ---------------------------------------------------------------------- layers and roles


def bits_picture(mix: PlannedMix, file: Path) -> None:
    """Formats by layer and role, as a heat map of at most 1,600 pixels' width; deep models in several bands.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ResourceError: the file cannot be written.
    """
    grid, key = Grid.of(mix.cells), key_of(mix.cells)
    place = _Placement.of(grid, [label for label, _, _ in key])
    figure = _figure(place.width / _DPI, place.height / _DPI, arranged=False)
    axes = figure.add_axes((0, 0, 1, 1))
    # A unit is a pixel, counted from the upper left.
    axes.set(xlim=(0, place.width), ylim=(place.height, 0))
    axes.axis("off")
    title = "Format of the weights by layer and role"
    axes.text(_MARGIN, 44, title, fontsize=_TITLE, fontweight="bold", color=_DARK, va="center")
    axes.text(_MARGIN, 84, _summary(mix), fontsize=_TEXT, color=_DIM, va="center")
    for number in range(len(place.bands)):
        _band(axes, grid, place, number)
    _key(axes, key, place)
    _save(figure, file)


@dataclass(frozen=True)
class _Placement:
    """Where things are in the picture of layers, in pixels."""

    bands: list[tuple[int, ...]]
    """Layers of each."""
    rows: int
    names: float
    """Where names of roles end."""
    left: float
    """Where the cells of layers begin: right of the names and of what comes before the layers."""
    cell: float
    """Width."""
    letters: float | None
    """Size of what is written on cells, in points; None where they are too small."""
    columns_of_key: int
    rows_of_key: int
    width: int

    @classmethod
    def of(cls, grid: Grid, labels: Sequence[str]) -> _Placement:
        names = _MARGIN + max(_width_of(role_name(role), _TEXT) for role in (*grid.roles, "layer"))
        left = names + _GAP + sum(_side_width(cell) for cell in grid.before)
        right = _MARGIN + sum(_side_width(cell) for cell in grid.after)
        room = _WIDEST - left - right
        narrow, wide = _CELL_WIDTHS
        bands = grid.bands(max(int(room / narrow), -(-len(grid.layers) // _MOST_BANDS)))
        longest = max(1, *(len(band) for band in bands))
        cell = min(wide, room / longest)
        width = min(_WIDEST, max(_NARROWEST, int(left + right + cell * longest)))
        columns = max(1, (width - 2 * _MARGIN) // _KEY_WIDTH)
        fitting = (cell - 8) / (max(len(short_label(label)) for label in labels) * _PIXELS_A_LETTER)
        return cls(
            bands=bands,
            rows=max(1, len(grid.roles)),
            names=names,
            left=left,
            cell=cell,
            letters=min(_TEXT, max(_SMALLEST_TEXT, fitting)) if cell >= narrow else None,
            columns_of_key=columns,
            rows_of_key=-(-len(labels) // columns),
            width=width,
        )

    @property
    def band_height(self) -> int:
        """Of the cells of a band."""
        return self.rows * _ROW_HEIGHT

    def top(self, band: int) -> int:
        """Of its cells; that of the key for the band behind the last."""
        return _TITLE_HEIGHT + band * (self.band_height + _TICK_HEIGHT + _BAND_GAP)

    @property
    def height(self) -> int:
        """Of the picture."""
        return self.top(len(self.bands)) + _KEY_HEIGHT * (self.rows_of_key + 1) + _MARGIN


def _band(axes: Axes, grid: Grid, place: _Placement, number: int) -> None:
    layers, top = place.bands[number], place.top(number)
    bottom = top + place.band_height
    for y, role in enumerate(grid.roles):
        middle = top + (y + 0.5) * _ROW_HEIGHT
        axes.text(place.names, middle, role_name(role), fontsize=_TEXT, color=_DARK, ha="right", va="center")
        for x, layer in enumerate(layers):
            if (role, layer) in grid.cells:
                left = place.left + x * place.cell
                box = (left, top + y * _ROW_HEIGHT, place.cell, _ROW_HEIGHT)
                _square(axes, box, grid.cells[role, layer].label, place.letters)
    if layers:
        step = max(1, -(-int(_width_of(str(max(layers)), _TEXT) + 12) // int(place.cell)))
        for x, layer in enumerate(layers):
            if x % step == 0:
                _tick(axes, place.left + (x + 0.5) * place.cell, bottom, str(layer))
        axes.text(place.names, bottom + _TICK_HEIGHT / 2, "layer", fontsize=_TEXT, color=_DIM, ha="right", va="center")
    if number == 0:
        _sides(axes, grid.before, place.names + _GAP / 2, top, bottom)
    if number == len(place.bands) - 1:
        _sides(axes, grid.after, place.left + len(layers) * place.cell + _GAP / 2, top, bottom)


def _sides(axes: Axes, cells: Sequence[Cell], left: float, top: float, bottom: float) -> None:
    """What lies in no layer, beside the layers and as high as they are together."""
    for cell in cells:
        width = _side_width(cell) - _GAP
        _square(axes, (left + _GAP / 2, top, width, bottom - top), cell.label, _TEXT)
        _tick(axes, left + _GAP / 2 + width / 2, bottom, cell_name(cell))
        left += _side_width(cell)


def _side_width(cell: Cell) -> float:
    return max(_SIDE_WIDTH, _width_of(cell_name(cell), _TEXT)) + _GAP


def _tick(axes: Axes, x: float, bottom: float, text: str) -> None:
    axes.text(x, bottom + _TICK_HEIGHT / 2, text, fontsize=_TEXT, color=_DARK, ha="center", va="center")


def _square(axes: Axes, box: tuple[float, float, float, float], label: str, letters: float | None) -> None:
    """A format on its colour; `box` is left, top, width and height, `letters` their size in points or None for none."""
    from matplotlib.patches import Rectangle

    x, y, width, height = box
    background = colour(label)
    axes.add_patch(Rectangle((x + 1, y + 1), width - 2, height - 2, facecolor=background, edgecolor="none"))
    if letters is not None:
        middle = (x + width / 2, y + height / 2)
        axes.text(*middle, short_label(label), fontsize=letters, color=ink(background), ha="center", va="center")


def _key(axes: Axes, key: Sequence[tuple[str, float, float]], place: _Placement) -> None:
    """Each format in use: its colour and short name, its full name, bits and share."""
    top = place.top(len(place.bands))
    words = "bits / block size (weights that share a scale)"
    if any(label.endswith("-zp") for label, _, _ in key):
        words += "; z: with zero points"
    if any(label == "w8a8" for label, _, _ in key):
        words += "; w8: a scale a channel"
    axes.text(_MARGIN, top + _KEY_HEIGHT / 2, words, fontsize=_TEXT, color=_DIM, va="center")
    for number, (label, bits, share) in enumerate(key):
        # Down, then right: fewest bits first.
        column, row = divmod(number, place.rows_of_key)
        x, y = _MARGIN + column * _KEY_WIDTH, top + (row + 1) * _KEY_HEIGHT
        _square(axes, (x, y + 2, _SIDE_WIDTH - 8, _KEY_HEIGHT - 4), label, _TEXT)
        middle = y + _KEY_HEIGHT / 2
        axes.text(x + 90, middle, label, fontsize=_TEXT, color=_DARK, va="center")
        facts = f"{bits:.2f} bits, {_percent(share)} of weights"
        axes.text(x + 222, middle, facts, fontsize=_TEXT - 1, color=_DIM, va="center")


def _width_of(text: str, size: float) -> float:
    """About so many pixels, rather more."""
    return len(text) * size * _PIXELS_A_LETTER


# ---------------------------------------------------------------------- the front


def front_picture(mix: PlannedMix, file: Path) -> None:
    """Loss over size of the best plans, the chosen one and plans without planning marked. Raises as `bits_picture`."""
    figure = _figure(*_FRONT_SIZE, arranged=True)
    figure.get_layout_engine().set(w_pad=0.16, h_pad=0.16)
    axes = figure.add_subplot()
    points = [point for point in mix.front if point.loss > 0]
    axes.plot(
        [point.bits_per_weight for point in points], [point.loss for point in points],
        color=_LINE, marker="o", markersize=4, linewidth=1.6, label="best plan of each size",
    )  # fmt: skip
    uniform = [point for point in mix.uniform if point.loss > 0]
    if uniform:
        axes.plot(
            [point.bits_per_weight for point in uniform], [point.loss for point in uniform],
            color=_DIM, marker="D", markersize=6, linestyle="none", zorder=3,
            label="all layers in one format, embedding and head in int8",
        )  # fmt: skip
    if mix.predicted_kl > 0:
        loss = "error" if mix.encoder else "KL"
        words = f"this plan: {mix.bits_per_weight:.2f} bits, {human_bytes(mix.nbytes)}, {loss} {mix.predicted_kl:.3g}"
        axes.plot(
            [mix.bits_per_weight], [mix.predicted_kl],
            color=_STAR, markeredgecolor="white", marker="*", markersize=18, linestyle="none", label=words, zorder=4,
        )  # fmt: skip
    axes.set_yscale("log")
    axes.margins(x=0.05, y=0.08)
    if uniform:
        # Room for the name of the last.
        low, high = axes.get_xlim()
        axes.set_xlim(low, high + 0.1 * (high - low))
    axes.set_xlabel("size (bits per weight, everything included)")
    what = (
        "relative squared error of hidden states" if mix.encoder else "KL divergence from the original (nats per token)"
    )
    axes.set_ylabel(f"predicted {what}")
    axes.grid(visible=True, which="major", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, fontsize=_TEXT, loc="best")
    axes.set_title("Size and accuracy: lower left is better", loc="left", fontsize=_TITLE, fontweight="bold", pad=14)
    _bytes_axis(axes, mix.front)
    _name_points(figure, axes, uniform)
    _save(figure, file)


def _bytes_axis(axes: Axes, front: Sequence[FrontPoint]) -> None:
    """The same sizes in bytes, along the top: they grow in a straight line with the bits."""
    if len(front) < 2 or front[-1].bits_per_weight <= front[0].bits_per_weight:
        return
    bits, nbytes = ([point.bits_per_weight for point in front], [point.nbytes for point in front])
    unit, name = next(pair for pair in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "bytes")) if nbytes[-1] >= pair[0])
    slope = (nbytes[-1] - nbytes[0]) / (bits[-1] - bits[0]) / unit
    start = nbytes[0] / unit - slope * bits[0]

    def of_bits(x: npt.ArrayLike) -> npt.ArrayLike:
        return start + slope * np.asarray(x, dtype=np.float64)

    def of_bytes(y: npt.ArrayLike) -> npt.ArrayLike:
        return (np.asarray(y, dtype=np.float64) - start) / slope

    top = axes.secondary_xaxis("top", functions=(of_bits, of_bytes))
    top.set_xlabel(f"size on disk ({name})", fontsize=_TEXT, color=_DIM)
    top.tick_params(labelsize=_TEXT, colors=_DIM)
    top.spines["top"].set_visible(False)


def _name_points(figure: Any, axes: Axes, points: Sequence[UniformPoint]) -> None:
    """Names to the right of points, where no plan on the front can be; pushed apart where they would touch."""
    figure.draw_without_rendering()
    line = 1.5 * _TEXT * _DPI / 72
    ordered = sorted(points, key=lambda point: point.loss)
    at = [float(axes.transData.transform((point.bits_per_weight, point.loss))[1]) for point in ordered]
    heights = apart([y + line / 2 for y in at], line, axes.bbox.y1 - line / 2)
    for point, y, height in zip(ordered, at, heights, strict=True):
        name = axes.annotate(
            point.label, (point.bits_per_weight, point.loss), xytext=(26, (height - y) * 72 / _DPI), textcoords="offset points",
            fontsize=_TEXT, color=_DARK, va="center",
            arrowprops={"arrowstyle": "-", "color": "#9a9a9a", "linewidth": 0.7, "shrinkA": 1, "shrinkB": 4},
        )  # fmt: skip
        name.set_in_layout(False)


def apart(wanted: Sequence[float], gap: float, most: float) -> list[float]:
    """Heights near the `wanted` ones (rising), at least `gap` from each other and none above `most`."""
    heights: list[float] = []
    for height in wanted:
        heights.append(max(height, heights[-1] + gap) if heights else height)
    for back in range(1, len(heights) + 1):
        heights[-back] = min(heights[-back], most - (back - 1) * gap)
    return heights


# ---------------------------------------------------------------------- words


def _summary(mix: PlannedMix) -> str:
    if mix.encoder:
        return (
            f"{mix.bits_per_weight:.2f} bits per weight, {human_bytes(mix.nbytes)}; predicted similarity "
            f"{similarity_of_error(mix.predicted_kl):.4f}"
        )
    return (
        f"{mix.bits_per_weight:.2f} bits per weight, {human_bytes(mix.nbytes)}; "
        f"predicted KL divergence {mix.predicted_kl:.3g} nats a token, top-1 agreement {mix.predicted_top1:.1%}"
    )


def _percent(share: float) -> str:
    return "< 1%" if share < 0.01 else f"{share:.0%}"
