"""`aiasst quantize`: a smaller model folder by a recipe, or the plan for one. Translates and prints; the stage does the work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aiasst.cli import output
from aiasst.cli.options import Force, Json, Quiet
from aiasst.errors import UsageError

if TYPE_CHECKING:
    from aiasst.artifacts.model_folder import ModelFolder
    from aiasst.quantize.plan import Plan, PlannedWeight

EXAMPLES = (
    "aiasst quantize story --bits 4\n\n"
    "aiasst quantize story --recipe mixed -o story-small\n\n"
    "aiasst quantize other-model.onnx --recipe w8a8 --dry-run"
)

_RECIPE_OF_BITS = {2: "int2-experimental", 4: "int4", 8: "int8"}


def command(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="A model folder of convert, or any ONNX file.")],
    destination: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder to write (default: DIR-RECIPE).")
    ] = None,
    bits: Annotated[
        int | None, typer.Option("--bits", "-b", metavar="2|4|8", help="Bits of the weights: short for a recipe.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", "-r", metavar="NAME|FILE", help="A recipe by name, or a YAML file (default: int4)."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and the sizes; write nothing.")] = False,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a model folder smaller and faster by rounding its weights."""
    from aiasst.quantize import preview, quantize

    name = _recipe_name(bits, recipe)
    if dry_run:
        _show_plan(preview(source, recipe=name), json=json)
        return
    with output.progress(quiet=quiet) as progress:
        folder = quantize(source, destination, recipe=name, force=force, progress=progress)
    _show_result(folder, json=json, quiet=quiet)


command.__name__ = "quantize"


def _recipe_name(bits: int | None, recipe: str | None) -> str:
    if bits is not None and recipe is not None:
        raise UsageError("--bits and --recipe say the same thing twice", "give one of them")
    if bits is None:
        return recipe or "int4"
    if bits not in _RECIPE_OF_BITS:
        from aiasst.quantize import bits_error

        raise UsageError(*bits_error(bits))
    return _RECIPE_OF_BITS[bits]


def _show_result(folder: ModelFolder, *, json: bool, quiet: bool) -> None:
    facts = folder.manifest.quantization
    assert facts is not None
    if json:
        output.document(
            {"folder": str(folder.path), "bytes": folder.weight_bytes, **facts.model_dump(mode="json")},
        )
    elif not quiet:
        size = output.human_bytes(folder.weight_bytes)
        output.data(f"{folder.path}: {size}, {facts.bits_per_weight:.2f} bits per weight ({facts.recipe})")
        if folder.manifest.task == "text-generation":
            output.note(f"next: aiasst chat {output.plain(folder.path)}")


def _show_plan(plan: Plan, *, json: bool) -> None:
    if json:
        output.document(_plan_document(plan))
        return
    title = f"Plan of recipe {plan.recipe.name}: {plan.bits_per_weight:.2f} bits per weight"
    before, after = output.human_bytes(plan.bytes_before), output.human_bytes(plan.bytes_after)
    columns = ("role", "format", "weights", "before", "after", "bits")
    caption = f"{before} → {after}, all included"
    output.table(title, columns, _plan_rows(plan), right=columns[2:], caption=caption)
    for reason, names in _by_reason(plan).items():
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        output.note(f"{names[0]}{others}: {reason}")
    for constant in plan.left_alone:
        output.note(f"{constant.name} stays as it is: {constant.reason}")


def _by_reason(plan: Plan) -> dict[str, list[str]]:
    """Why weights have another format than the recipe's → their names."""
    reasons: dict[str, list[str]] = {}
    for weight in plan.weights:
        if weight.reason:
            reason = f"{weight.chosen.label}, not {weight.wanted.label}: {weight.reason}"
            reasons.setdefault(reason, []).append(weight.matrix.name)
    return reasons


def _plan_rows(plan: Plan) -> list[Sequence[object]]:
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


def _plan_document(plan: Plan) -> dict[str, Any]:
    return {
        "recipe": plan.recipe.name,
        "bytes_before": plan.bytes_before,
        "bytes": plan.bytes_after,
        "bits_per_weight": round(plan.bits_per_weight, 4),
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
    }
