"""A plan at the terminal: formats by role, bits by layer and role in colour, the size-accuracy front. Decides nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from aiasst.cli import output

if TYPE_CHECKING:
    from aiasst.quantize.plan import Plan, PlannedWeight
    from aiasst.quantize.planning.mix import PlannedMix

_WIDTH, _HEIGHT = 56, 11
"""Of the front, in characters."""
_CELL = 5
_NARROWEST, _USUAL_WIDTH = 40, 100


def show(plan: Plan) -> None:
    """Tables and pictures on stdout, remarks on stderr."""
    title = f"Plan of recipe {plan.recipe.name}: {plan.bits_per_weight:.2f} bits per weight"
    before, after = output.human_bytes(plan.bytes_before), output.human_bytes(plan.bytes_after)
    columns = ("role", "format", "weights", "before", "after", "bits")
    caption = f"{before} → {after}, all included"
    output.table(title, columns, _rows(plan), right=columns[2:], caption=caption)
    if plan.mix is not None:
        width = min(max(output.terminal_width(), _NARROWEST), 10_000) if output.is_terminal() else _USUAL_WIDTH
        output.picture("Bits by layer and role", _grid(plan.mix, width))
        output.picture("Size and accuracy: the best plan of each size, ★ this one", _front(plan.mix))
        output.section("Predicted", _predicted(plan.mix))
    for reason, names in _by_reason(plan).items():
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        output.note(output.plain(f"{names[0]}{others}: {reason}"))
    for constant in plan.left_alone:
        output.note(output.plain(f"{constant.name} stays as it is: {constant.reason}"))
    for remark in plan.notes:
        output.note(output.plain(remark))


def document(plan: Plan) -> dict[str, Any]:
    """What `--json` says of a plan."""
    return {
        "recipe": plan.recipe.name,
        "algorithm": plan.recipe.algorithm,
        "bytes_before": plan.bytes_before,
        "bytes": plan.bytes_after,
        "bits_per_weight": round(plan.bits_per_weight, 4),
        **({} if plan.mix is None else _mix_document(plan.mix)),
        "weights": {
            w.matrix.name: {
                "role": w.matrix.role,
                "layer": w.matrix.layer,
                "shape": list(w.matrix.stored_shape),
                "format": w.chosen.label,
                "bytes": w.bytes_after,
                "reason": w.reason,
            }
            for w in plan.weights
        },
        "left_alone": {constant.name: constant.reason for constant in plan.left_alone},
        "notes": list(plan.notes),
    }


def _mix_document(mix: PlannedMix) -> dict[str, Any]:
    return {
        "predicted": {"kl_mean": mix.predicted_kl, "top1_agreement": mix.predicted_top1, "token_ms": mix.token_ms},
        "front": [
            {"bytes": point.nbytes, "bits_per_weight": round(point.bits_per_weight, 4), "kl_mean": point.loss}
            for point in mix.front
        ],
        "planned_recipe": mix.recipe.model_dump(mode="json", exclude_none=True),
    }


def _predicted(mix: PlannedMix) -> list[tuple[str, str]]:
    source = "the plan measured on calibration text" if mix.measured else "a sum over its parts"
    rows = [
        ("KL divergence", f"{mix.predicted_kl:.4f} nats a token ({source})"),
        ("top-1 agreement", f"{mix.predicted_top1:.1%}"),
        ("size", f"{output.human_bytes(mix.nbytes)}, {mix.bits_per_weight:.2f} bits per weight"),
    ]
    if mix.token_ms is not None:
        rows.append(("time a token", f"{mix.token_ms:.2f} ms"))
    return rows


def _by_reason(plan: Plan) -> dict[str, list[str]]:
    """Why weights have another format than the recipe's → their names."""
    reasons: dict[str, list[str]] = {}
    for weight in plan.weights:
        if weight.reason:
            reason = f"{weight.chosen.label}, not {weight.wanted.label}: {weight.reason}"
            reasons.setdefault(reason, []).append(weight.matrix.name)
    return reasons


def _rows(plan: Plan) -> list[Sequence[object]]:
    groups: dict[tuple[str, str], list[PlannedWeight]] = {}
    for weight in plan.weights:
        role: str = weight.matrix.role
        groups.setdefault(("embed, lm_head" if weight.matrix.tied else role, weight.chosen.label), []).append(weight)
    rows: list[Sequence[object]] = []
    for (role, label), group in groups.items():
        before, after = sum(w.bytes_before for w in group), sum(w.bytes_after for w in group)
        bits = 8 * after / sum(w.matrix.elements for w in group)
        rows.append((role, label, len(group), output.human_bytes(before), output.human_bytes(after), f"{bits:.2f}"))
    rest = plan.other_bytes + plan.table_bytes
    rows.append(("everything else", "as it is", "", output.human_bytes(rest), output.human_bytes(rest), ""))
    return rows


# ---------------------------------------------------------------------- pictures


def _grid(mix: PlannedMix, width: int) -> list[str]:
    """A line a role: bits of each layer on the colour of its format; layers in several bands where the terminal is narrow."""
    from aiasst.quantize.planning.drawing import colour, grid_of

    roles, layers, cells = grid_of(mix.cells)
    margin = max(len(role) for role in (*roles, "layer")) + 2
    a_band = max(1, (width - margin) // _CELL)
    lines: list[str] = []
    for start in range(0, len(layers), a_band):
        band = layers[start : start + a_band]
        for role in roles:
            row = [cells.get((role, layer)) for layer in band]
            if any(cell is not None for cell in row):
                squares = (
                    " " * _CELL if cell is None else f"[black on {colour(cell.label)}]{cell.bits:^{_CELL}.1f}[/]"
                    for cell in row
                )
                lines.append(f"{role:<{margin}}" + "".join(squares))
        names = "".join(f"{'–' if layer is None else layer:^{_CELL}}" for layer in band)
        lines += [f"{'layer':<{margin}}{names}", ""]
    labels = {cell.label: cell.bits for cell in mix.cells}
    legend = "  ".join(f"[on {colour(label)}]  [/] {label}" for label in sorted(labels, key=lambda name: labels[name]))
    return [*lines, legend]


def _front(mix: PlannedMix) -> list[str]:
    """KL divergence over bits per weight, as characters."""
    marks = [(point.bits_per_weight, point.loss, "•") for point in mix.front if point.loss > 0]
    if mix.predicted_kl > 0:
        marks.append((mix.bits_per_weight, mix.predicted_kl, "★"))
    if len(marks) < 2:
        return []
    left, right = min(x for x, _, _ in marks), max(x for x, _, _ in marks)
    low, high = (f(math.log10(y) for _, y, _ in marks) for f in (min, max))
    canvas = [[" "] * (_WIDTH + 1) for _ in range(_HEIGHT + 1)]
    for x, y, mark in marks:
        column = round((x - left) / max(right - left, 1e-9) * _WIDTH)
        row = round((high - math.log10(y)) / max(high - low, 1e-9) * _HEIGHT)
        canvas[row][column] = mark
    lines = []
    for number, row_marks in enumerate(canvas):
        value = 10 ** (high - (high - low) * number / _HEIGHT)
        lines.append(
            f"{f'{value:.1e}' if number % 3 == 0 else '':>9} │{''.join(row_marks)}".replace("★", "[bold red]★[/]")
        )
    lines.append(f"{'KL':>9} └{'─' * (_WIDTH + 1)}")
    ends = f"{left:.1f}", f"{right:.1f} bits per weight"
    return [*lines, f"{'':>11}{ends[0]}{ends[1]:>{_WIDTH + 1 - len(ends[0])}}"]
