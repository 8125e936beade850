"""`aiasst quantize`: a smaller model folder by a recipe or under a budget. Translates and prints; the stage does the work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aiasst.cli import output
from aiasst.cli.options import Force, Json, Quiet
from aiasst.errors import UsageError

if TYPE_CHECKING:
    from aiasst.artifacts.card import AccuracyCard
    from aiasst.artifacts.device import DeviceConfig
    from aiasst.artifacts.model_folder import ModelFolder
    from aiasst.quantize.plan import Plan
    from aiasst.quantize.planning.budget import Budget

EXAMPLES = (
    "aiasst quantize story --bits 4\n\n"
    "aiasst quantize story --bits 4 --cache int8\n\n"
    "aiasst quantize story --target-bpw 4.5 --plot plan.png\n\n"
    "aiasst quantize llama --bits 4 --twin\n\n"
    "aiasst quantize llama --max-size 1.1GB --max-kld 0.03 --max-ram 6GB\n\n"
    "aiasst quantize llama --device device.json --token-ms 20 --workload 4x512+128\n\n"
    "aiasst quantize story --recipe mixed --calibration chats.jsonl -o story-small\n\n"
    "aiasst quantize other-model.onnx --recipe w8a8 --dry-run"
)

_RECIPE_OF_BITS = {2: "int2-experimental", 4: "int4", 8: "int8"}
_STABLE = (
    "perplexity_before", "perplexity_after", "kl_mean", "kl_p999", "top1_agreement", "retained_percent", "bytes",
    "bits_per_weight",
)  # fmt: skip
"""Names in `--json` that others build on."""

_CALIBRATION, _BUDGET, _PLAN = "Calibration", "Budget: formats are planned so that it is kept, or it is refused", "Plan"


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
        typer.Option(
            "--recipe",
            "-r",
            metavar="NAME|FILE",
            help="A recipe by name, or a YAML file (default: int4; of an encoder w8a8).",
        ),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(
            "--cache",
            metavar="float|int8",
            help="How keys and values are kept: int8 takes a quarter of the memory (default: the recipe's).",
        ),
    ] = None,
    algorithm: Annotated[
        str | None,
        typer.Option(
            "--algorithm",
            metavar="NAME",
            help="How weights are rounded: rtn, mse, awq or gptq (default: the recipe's).",
        ),
    ] = None,
    twin: Annotated[
        bool,
        typer.Option(
            "--twin",
            help="Write a w8a8 form beside it, faster for long prompts and many sequences at once.",
        ),
    ] = False,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            metavar="FILE",
            help="Text to calibrate on: .jsonl, .txt, or token ids in .npz (default: our own texts).",
            rich_help_panel=_CALIBRATION,
        ),
    ] = None,
    sequences: Annotated[
        int,
        typer.Option("--sequences", metavar="N", min=1, help="Passages of it to use.", rich_help_panel=_CALIBRATION),
    ] = 64,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", min=0, help="Which passages.", rich_help_panel=_CALIBRATION)
    ] = 0,
    max_ram: Annotated[
        str | None,
        typer.Option(
            "--max-ram",
            metavar="6GB",
            help="Memory the work may take; kept, or refused before it begins.",
            rich_help_panel=_CALIBRATION,
        ),
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option("--max-size", metavar="1.1GB", help="Size of graph and weights.", rich_help_panel=_BUDGET),
    ] = None,
    target_bpw: Annotated[
        float | None,
        typer.Option(
            "--target-bpw", metavar="4.5", help="Bits per weight, everything included.", rich_help_panel=_BUDGET
        ),
    ] = None,
    max_kld: Annotated[
        float | None,
        typer.Option(
            "--max-kld",
            metavar="0.03",
            help="KL divergence from the original, nats a token, on text calibration does not see.",
            rich_help_panel=_BUDGET,
        ),
    ] = None,
    min_top1: Annotated[
        float | None,
        typer.Option(
            "--min-top1",
            metavar="0.93",
            help="Share of tokens with the original's first choice.",
            rich_help_panel=_BUDGET,
        ),
    ] = None,
    min_similarity: Annotated[
        float | None,
        typer.Option(
            "--min-similarity",
            metavar="0.99",
            help="Of an encoder: mean cosine of a text's vector with the original's.",
            rich_help_panel=_BUDGET,
        ),
    ] = None,
    token_ms: Annotated[
        float | None,
        typer.Option(
            "--token-ms", metavar="20", help="Milliseconds a token, by the costs of --device.", rich_help_panel=_BUDGET
        ),
    ] = None,
    device: Annotated[
        Path | None,
        typer.Option(
            "--device", metavar="FILE", help="Device config of the machine it is for.", rich_help_panel=_BUDGET
        ),
    ] = None,
    workload: Annotated[
        str | None,
        typer.Option(
            "--workload",
            metavar="4x512+128",
            help="Sequences at once x tokens of a prompt + of an answer (default: 1x512+128).",
            rich_help_panel=_BUDGET,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show plan, sizes, memory and time; write no folder.", rich_help_panel=_PLAN),
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE.png",
            help="Draw bits by layer, and beside it FILE-front.png: size and accuracy. With a budget.",
            rich_help_panel=_PLAN,
        ),
    ] = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a model folder smaller and faster by rounding its weights, and measure what that costs.

    By a recipe (--bits, --recipe), or under a budget: then it is found out which
    layers hurt, and bits are spent where they matter. A budget that cannot be
    kept leaves no folder and exits with 3. With --bits or --recipe, --max-kld,
    --min-top1 and (of an encoder) --min-similarity refuse a result that is worse.

    With --twin the folder holds two forms of the model, and run and chat use
    each where it is faster. Limits of size are the first one's; both are
    measured, and limits of accuracy hold for both.
    """
    from aiasst.cli import plan_view
    from aiasst.quantize import preview, quantize

    budget = _budget(max_size, target_bpw, max_kld, min_top1, min_similarity, token_ms, workload)
    plans = budget is not None and bits is None and recipe is None
    _refuse_contradictions(budget, plans=plans, device=device, workload=workload, plot=plot)
    config = None if token_ms is None else _device(device)
    if budget is not None and config is not None:
        budget = _with_the_rest(budget, source, config)
    wishes: dict[str, Any] = {
        "cache": _cache(cache),
        "recipe": None if plans else _recipe_name(bits, recipe), "algorithm": algorithm, "calibration": calibration,
        "sequences": sequences, "seed": seed, "max_ram": _bytes(max_ram), "budget": budget,
        "device": config, "twin": twin,
    }  # fmt: skip
    with output.progress(quiet=quiet) as progress:
        plan = preview(source, destination, **wishes, progress=progress) if plans or dry_run else None
    if plan is not None:
        _draw(plan, plot, quiet=quiet)
        if dry_run and json:
            output.document(plan_view.document(plan))
        elif dry_run or not (json or quiet):
            plan_view.show(plan)
        if dry_run:
            return
        # The plan is made: its recipe is carried out, and the budget is what the result is held against.
        wishes |= {"recipe": plan.recipe, "algorithm": plan.recipe.algorithm}
    with output.progress(quiet=quiet) as progress:
        folder = quantize(source, destination, **wishes, force=force, progress=progress)
    _show_result(folder, json=json, quiet=quiet)


command.__name__ = "quantize"


def _recipe_name(bits: int | None, recipe: str | None) -> str | None:
    """None: what is usual for the model."""
    if bits is not None and recipe is not None:
        raise UsageError("--bits and --recipe say the same thing twice", "give one of them")
    if bits is None:
        return recipe
    if bits not in _RECIPE_OF_BITS:
        from aiasst.quantize import bits_error

        raise UsageError(*bits_error(bits))
    return _RECIPE_OF_BITS[bits]


def _cache(name: str | None) -> str | None:
    if name not in (None, "float", "int8"):
        raise UsageError(
            f"there is no cache of '{name}'", "--cache int8 takes a quarter of the memory of --cache float"
        )
    return name


def _budget(
    max_size: str | None,
    target_bpw: float | None,
    max_kld: float | None,
    min_top1: float | None,
    min_similarity: float | None,
    token_ms: float | None,
    workload: str | None,
) -> Budget | None:
    from aiasst.quantize.planning.budget import Budget, Workload

    budget = Budget(
        max_bytes=_bytes(max_size), target_bpw=target_bpw, max_kld=max_kld, min_top1=min_top1,
        min_similarity=min_similarity, token_ms=token_ms,
        workload=Workload() if workload is None else Workload.parse(workload),
    )  # fmt: skip
    return None if budget.is_empty else budget


def _with_the_rest(budget: Budget, source: Path, config: DeviceConfig) -> Budget:
    """`budget` with what a token takes beside products on the machine of `config`, where that is known."""
    from aiasst.artifacts.model_folder import MANIFEST_NAME, ModelFolder
    from aiasst.profile.advise import beside_formats

    asked = budget.workload
    if not (source / MANIFEST_NAME).is_file():  # any ONNX file: nothing is known of its layers
        return budget
    known = beside_formats(ModelFolder.open(source).manifest, config, asked.sequences, asked.prompt, asked.answer)
    if known is None:
        return budget
    seconds, cached = known
    return replace(budget, workload=replace(asked, beside_ms=seconds * 1e3, cached=cached))


def _bytes(text: str | None) -> int | None:
    from aiasst.quantize.planning.budget import parse_bytes

    return None if text is None else parse_bytes(text)


def _device(file: Path | None) -> DeviceConfig | None:
    from aiasst.artifacts.device import load_device_config

    return None if file is None else load_device_config(file)


def _refuse_contradictions(
    budget: Budget | None, *, plans: bool, device: Path | None, workload: str | None, plot: Path | None
) -> None:
    """Raise UsageError where options do not go together, before anything is read."""
    if budget is not None and budget.needs_planning and not plans:
        raise UsageError(
            "a recipe says which formats to use, and a limit of size or time lets them be planned: both at once contradict",
            "leave out --bits and --recipe, or the limit; --max-kld, --min-top1 and --min-similarity go with either",
        )
    times = budget is not None and budget.token_ms is not None
    if times and device is None:
        raise UsageError(
            "--token-ms needs the costs of a machine",
            "measure it with `aiasst profile -o device.json`, then add --device device.json",
        )
    if not times and (device is not None or workload is not None):
        raise UsageError(
            "--device and --workload say what a time per token is for", "add --token-ms, or leave them out"
        )
    if plot is not None:
        if not plans:
            raise UsageError("--plot draws a plan under a budget", "add a budget, for example --target-bpw 4.5")
        from aiasst.artifacts.picture import check_picture

        check_picture(plot)


def _draw(plan: Plan, file: Path | None, *, quiet: bool) -> None:
    if file is None or plan.mix is None:
        return
    from aiasst.quantize.planning.drawing import draw

    drawn = draw(plan.mix, file)
    if not quiet:
        output.note(f"drawn: {output.plain(' and '.join(map(str, drawn)))}")


def _show_result(folder: ModelFolder, *, json: bool, quiet: bool) -> None:
    from aiasst.artifacts.card import read_card
    from aiasst.cli import card as cards

    facts = folder.manifest.quantization
    assert facts is not None
    card = read_card(folder)
    if json:
        known = {"folder": str(folder.path), "bytes": folder.weight_bytes, **facts.model_dump(mode="json")}
        if folder.manifest.twin is not None:
            known["twin_bytes"] = folder.twin_bytes
        output.document(known | _stable(card))
    elif not quiet:
        size = output.human_bytes(folder.weight_bytes)
        small = ", int8 cache" if facts.cache is not None else ""
        output.data(f"{folder.path}: {size}, {facts.bits_per_weight:.2f} bits per weight ({facts.recipe}){small}")
        if (twin := folder.manifest.twin) is not None:
            beside = output.human_bytes(folder.twin_bytes)
            output.data(f"and its second form: {beside} beside that, {twin.quantization.recipe}")
        if card is not None:
            cards.show(card)
        if folder.manifest.task == "text-generation":
            output.note(f"next: aiasst chat {output.plain(folder.path)}")


def _stable(card: AccuracyCard | None) -> dict[str, Any]:
    """The card's numbers under the names that others build on, and the card whole."""
    if card is None:
        return {}
    measured = card.model_dump(mode="json")
    return {name: measured[name] for name in _STABLE} | {"card": measured}
