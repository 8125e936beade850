"""The figures as a picture: decoding by number of answers, and the time between tokens. Writes a PNG file; computes no figure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aiasst.artifacts.document import written_whole
from aiasst.artifacts.model_folder import disk_errors
from aiasst.artifacts.picture import check_picture
from aiasst.sizes import human_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from aiasst.bench.report import Report

_DPI = 150
_SIZE = (11.0, 5.5)
"""Inches."""
_OURS, _THEIRS, _DARK, _DIM = "#3f7fbf", "#f28e2b", "#1a1a1a", "#5c5c5c"
_TEXT, _TITLE = 9.0, 12.5
"""In points."""
_FAR = 8
"""Times the median that the 99th percentile must be for times between tokens to be drawn on a logarithmic axis."""


def draw(report: Report, file: Path) -> None:
    """Write the picture, whole or not at all.

    Raises:
        UsageError, MissingExtraError: see `check_picture`.
        ResourceError: the file cannot be written.
    """
    check_picture(file)
    # Its own canvas: no window system, and no state of a process that others may use.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.14, h_pad=0.12, wspace=0.04)
    figure.suptitle(
        f"{report.model} on {report.machine}", x=0.015, ha="left", fontsize=_TITLE, fontweight="bold", color=_DARK
    )
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _decode(left, report)
    _between(right, report)
    figure.supxlabel(_summary(report), x=0.015, ha="left", fontsize=_TEXT, color=_DIM)
    with disk_errors(file), written_whole(file) as partial:
        figure.savefig(partial, format="png", facecolor="white")


def _decode(axes: Axes, report: Report) -> None:
    """A group of bars a number of answers: the best, with a line at the median."""
    series = [("aiasst", _OURS, {one.sequences: one.speed for one in report.decode})]
    if report.against is not None:
        name = f"{report.against.peer} {report.against.version}"
        series.append((name, _THEIRS, {one.sequences: one.speed for one in report.against.decode}))
    width = 0.74 / len(series)
    for number, (name, colour, speeds) in enumerate(series):
        at = np.arange(len(speeds)) + (number - (len(series) - 1) / 2) * width
        best = [speed.best for speed in speeds.values()]
        axes.bar(at, best, width * 0.94, color=colour, label=name)
        for x, speed in zip(at, speeds.values(), strict=True):
            axes.plot([x - width * 0.47, x + width * 0.47], [speed.median] * 2, color="white", linewidth=1.6)
            words = f"{speed.best:.0f}" if speed.best >= 100 else f"{speed.best:.1f}"
            axes.annotate(
                words, (x, speed.best), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=_TEXT,
                color=_DARK,
            )  # fmt: skip
    axes.set_xticks(range(len(report.decode)), [str(one.sequences) for one in report.decode])
    axes.set_xlabel("answers at once")
    axes.set_title("Decode, tokens a second of all together (white: median)", loc="left", fontsize=_TEXT + 1)
    # Room for the names above the bars.
    axes.margins(y=0.22 if len(series) > 1 else 0.1)
    axes.grid(visible=True, axis="y", color="#e4e4e4", linewidth=0.8)
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=_TEXT, loc="upper left", ncols=len(series))
    _plain(axes)


def _between(axes: Axes, report: Report) -> None:
    """How many of the tokens of a single answer came within so many milliseconds."""
    from matplotlib.ticker import ScalarFormatter

    times = np.sort(report.inter_token_ms)
    axes.plot(times, np.arange(1, len(times) + 1) / len(times) * 100, color=_OURS, linewidth=1.8)
    marks = ((50, report.inter_token_ms_p50), (99, report.inter_token_ms_p99))
    for share, value in marks:
        axes.plot([value], [share], marker="o", markersize=6, color=_OURS, markeredgecolor="white")
        axes.annotate(
            f"{share}%: {value:.2f} ms", (value, share), xytext=(7, -11), textcoords="offset points", fontsize=_TEXT,
            color=_DARK,
        )  # fmt: skip
    low, high = times[0], report.inter_token_ms_p99
    if high > _FAR * report.inter_token_ms_p50:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.set_xlim(low * 0.8, high * 4)
    else:
        axes.set_xlim(low - 0.06 * (high - low), high + 0.5 * (high - low))
    axes.set_ylim(0, 104)
    axes.set_xlabel("milliseconds to the next token")
    axes.set_title("One answer, % of tokens within", loc="left", fontsize=_TEXT + 1)
    axes.grid(visible=True, color="#e4e4e4", linewidth=0.8)
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=_TEXT)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _summary(report: Report) -> str:
    machine = [
        f"{report.threads} thread{'s' if report.threads > 1 else ''}",
        f"onnxruntime {report.onnxruntime}",
        f"load {report.load_seconds:.2f} s",
        f"peak memory {human_bytes(report.peak_rss_bytes)}",
        f"{report.rounds} rounds, a median at most {report.noise:.0%} below its best",
    ]
    speed = [
        f"prompt of {report.prompt_tokens}: {report.prefill.best:.0f} tok/s, first token after {report.ttft_ms:.0f} ms",
        f"one answer reads {report.bandwidth_share:.0%} of the memory bandwidth"
        if report.bandwidth_share <= 1
        else "the weights come from caches",
        f"the engine takes {report.decode[0].overhead_share:.1%} of its steps",
    ]
    if report.against is not None:
        speed[0] += f" ({report.against.peer} {report.against.prefill.best:.0f} tok/s)"
    return "\n".join(" · ".join(words) for words in (speed, machine))
