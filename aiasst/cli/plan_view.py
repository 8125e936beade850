"""A plan at the terminal: formats by role, and by layer and role in colour, the size-accuracy front. Decides nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from aiasst.cli import output

if TYPE_CHECKING:
    from aiasst.quantize.fitting import PlannedWeight
    from aiasst.quantize.plan import Plan
    from aiasst.quantize.planning.mix import PlannedMix, UniformPoint

_WIDTH, _HEIGHT = 56, 11
"""Of the front, in characters."""
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
        output.picture("Formats by layer and role: bits / block size (4z64: with zero points)", _grid(plan.mix, width))
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
        "predicted": {
            # Of an encoder there is no next token: all losses below are relative squared errors of hidden states.
            "kl_mean": None if mix.encoder else mix.predicted_kl,
            "top1_agreement": None if mix.encoder else mix.predicted_top1,
            "relative_error": mix.predicted_kl if mix.encoder else None,
            "token_ms": mix.token_ms,
        },
        "front": [
            {
                "bytes": point.nbytes,
                "bits_per_weight": round(point.bits_per_weight, 4),
                ("relative_error" if mix.encoder else "kl_mean"): point.loss,
            }
            for point in mix.front
        ],
        "uniform": [
            {
                "format": point.label,
                "bytes": point.nbytes,
                "bits_per_weight": round(point.bits_per_weight, 4),
                ("relative_error" if mix.encoder else "kl_mean"): point.loss,
            }
            for point in mix.uniform
        ],
        "planned_recipe": mix.recipe.model_dump(mode="json", exclude_none=True),
    }


def _predicted(mix: PlannedMix) -> list[tuple[str, str]]:
    from aiasst.quantize.planning.budget import similarity_of_error

    source = "the plan measured on calibration text" if mix.measured else "a sum over its parts"
    if mix.encoder:
        rows = [("similarity", f"about {similarity_of_error(mix.predicted_kl):.4f} ({source})")]
    else:
        rows = [
            ("KL divergence", f"{mix.predicted_kl:.4f} nats a token ({source})"),
            ("top-1 agreement", f"{mix.predicted_top1:.1%}"),
        ]
    rows += [
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
    """A line a role: formats of the layers in short, each on its colour; layers in several bands where the terminal is narrow."""
    from aiasst.quantize.planning.drawing import Grid, cell_name, key_of, role_name, short_label

    grid, key = Grid.of(mix.cells), key_of(mix.cells)
    outside = [*grid.before, *grid.after]
    margin = max(len(name) for name in (*map(role_name, ("layer", *grid.roles)), *map(cell_name, outside))) + 1
    # Flush left: bits stand below bits, which shows without colours too.
    letters = max(*(len(short_label(label)) for label, _, _ in key), *(len(str(layer)) for layer in grid.layers), 0)
    lines = [f"{cell_name(cell):<{margin}}{_cell(cell.label, letters)}" for cell in grid.before]
    for band in grid.bands((width - margin) // (letters + 1)):
        lines += [""] * bool(lines)
        lines.append(f"{'layer':<{margin}}" + "".join(f" {layer:<{letters}}" for layer in band))
        for role in grid.roles:
            row = [grid.cells.get((role, layer)) for layer in band]
            squares = (" " * (letters + 1) if cell is None else _cell(cell.label, letters) for cell in row)
            lines.append(f"{role_name(role):<{margin}}" + "".join(squares))
    lines += [""] * bool(grid.after)
    lines += [f"{cell_name(cell):<{margin}}{_cell(cell.label, letters)}" for cell in grid.after]
    widest = max(len(label) for label, _, _ in key)
    legend = [
        f"{_cell(label, letters)}  {label:<{widest}}  {bits:5.2f} bits  {share:4.0%} of weights"
        for label, bits, share in key
    ]
    return [*lines, "", *legend]


def _cell(label: str, letters: int) -> str:
    """A format in short on its colour, a space before it."""
    from aiasst.quantize.planning.drawing import colour, ink, short_label

    background = colour(label)
    return f"[{ink(background)} on {background}] {short_label(label):<{letters}}[/]"


def _front(mix: PlannedMix) -> list[str]:
    """KL divergence over bits per weight, as characters; plans without planning as letters with a line each below."""
    uniform = [(chr(ord("a") + number), point) for number, point in enumerate(p for p in mix.uniform if p.loss > 0)]
    marks = [(point.bits_per_weight, point.loss, "•") for point in mix.front if point.loss > 0]
    if mix.predicted_kl > 0:
        marks.append((mix.bits_per_weight, mix.predicted_kl, "★"))
    marks += [(point.bits_per_weight, point.loss, letter) for letter, point in uniform]
    if len(marks) < 2:
        return []
    left, right = min(x for x, _, _ in marks), max(x for x, _, _ in marks)
    low, high = (f(math.log10(y) for _, y, _ in marks) for f in (min, max))
    canvas = [[" "] * (_WIDTH + 1) for _ in range(_HEIGHT + 1)]
    for x, y, mark in marks:
        column = round((x - left) / max(right - left, 1e-9) * _WIDTH)
        row = round((high - math.log10(y)) / max(high - low, 1e-9) * _HEIGHT)
        if mark.isalpha():
            # Beside what must not be hidden.
            free = (place for place, taken in enumerate(canvas[row]) if taken in " •")
            column = min(free, key=lambda place: abs(place - column), default=column)
        canvas[row][column] = mark
    lines = []
    for number, row_marks in enumerate(canvas):
        value = 10 ** (high - (high - low) * number / _HEIGHT)
        lines.append(
            f"{f'{value:.1e}' if number % 3 == 0 else '':>9} │{''.join(row_marks)}".replace("★", "[bold red]★[/]")
        )
    lines.append(f"{'error' if mix.encoder else 'KL':>9} └{'─' * (_WIDTH + 1)}")
    ends = f"{left:.1f}", f"{right:.1f} bits per weight"
    lines.append(f"{'':>11}{ends[0]}{ends[1]:>{_WIDTH + 1 - len(ends[0])}}")
    return [*lines, *_compared(mix, uniform)]


def _compared(mix: PlannedMix, uniform: Sequence[tuple[str, UniformPoint]]) -> list[str]:
    """This plan and those without planning, in numbers."""
    if not uniform:
        return []
    rows = [("★", "this plan", mix.bits_per_weight, mix.nbytes, mix.predicted_kl)]
    rows += [(letter, point.label, point.bits_per_weight, point.nbytes, point.loss) for letter, point in uniform]
    widest = max(len(name) for _, name, _, _, _ in rows)
    word = "error" if mix.encoder else "KL"
    return [
        "",
        *(
            f"{'':>11}{mark} {name:<{widest}}  {bits:5.2f} bits  {output.human_bytes(nbytes):>8}  {word} {loss:.3g}"
            for mark, name, bits, nbytes, loss in rows
        ),
    ]
