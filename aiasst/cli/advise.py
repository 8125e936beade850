"""`aiasst advise`: which common models run here, or on a machine one does not have, in which format and how fast."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aiasst.cli import advice_view, output
from aiasst.cli.options import USUAL_CONTEXT, Context, Device, Json, Quiet

if TYPE_CHECKING:
    from aiasst.profile.advise import Advice, Machine

EXAMPLES = (
    "aiasst advise\n\naiasst advise --device raspberry-pi-5-8gb --speed 5\n\n"
    "aiasst advise --device mac-mini-m4-16gb --memory 8GB\n\naiasst advise --devices"
)

_SUFFIX = re.compile(r"-(?:it|Instruct|Chat-v1\.0)(?=-|$)", re.IGNORECASE)
"""What all of these models are: tuned to answer. A narrow table does without the word."""


def command(
    device: Device = None,
    context: Context = USUAL_CONTEXT,
    speed: Annotated[
        float, typer.Option("--speed", metavar="TOK/S", help="Tokens a second that one sequence should have.")
    ] = 10.0,
    memory: Annotated[
        str | None, typer.Option("--memory", metavar="SIZE", help="Take at most so much memory, for example 8GB.")
    ] = None,
    devices: Annotated[bool, typer.Option("--devices", help="List the machines that --device knows.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say which models fit, in which format, and how fast they would be, before anything is downloaded.

    Without --device this machine is measured for some seconds. Of each model
    the most accurate format is taken that fits and is fast enough.
    """
    if devices:
        _list_devices(json=json)
        return
    from aiasst.profile.advise import advise_on, known_models
    from aiasst.profile.report import of_advice, of_machine

    machine = _machine(device, memory, quiet=quiet)
    advices = [advise_on(known.name, known.shape, machine, context=context, speed=speed) for known in known_models()]
    if json:
        models: list[dict[str, Any]] = [
            of_advice(advice, machine, speed) | {"source": known.source}
            for advice, known in zip(advices, known_models(), strict=True)
        ]
        output.document({"machine": of_machine(machine), "context": context, "speed": speed, "models": models})
        return
    _show(advices, machine, context, speed)
    if not quiet:
        _say(advices, machine, device)


command.__name__ = "advise"


def _machine(device: str | None, memory: str | None, *, quiet: bool) -> Machine:
    from aiasst.quantize.planning.budget import parse_bytes

    most = None if memory is None else parse_bytes(memory)
    if device is not None:
        return advice_view.machine_called(device, memory=most)
    from aiasst.profile import profile

    with output.progress(quiet=quiet) as progress:
        return advice_view.machine_of(profile(progress=progress), memory=most)


def _show(advices: list[Advice], machine: Machine, context: int, speed: float) -> None:
    columns = ["model", "format", "GB", "TTFT", "tokens/s", "of 8", "needs"]
    title = f"{machine.title}: {output.human_bytes(machine.ceiling_bytes)} for a model"
    caption = (
        f"GB: memory with a context of {context:,} tokens (or the model's own); TTFT: time to the first token of a prompt of 512; "
        f"tokens/s: of one sequence (from–to); of 8: of eight together; needs: GB/s of memory that {speed:g} tokens/s take at least"
    )
    rows = [_row(advice, speed) for advice in advices]
    output.table(title, columns, rows, right=("GB", "of 8", "needs"), caption=caption)


def _row(advice: Advice, speed: float) -> list[str]:
    from aiasst.profile.advise import least_bandwidth

    name, best = _SUFFIX.sub("", advice.name.rpartition("/")[2]), advice.best
    if best is None:
        return [name, "none fits", "-", "-", "-", "-", "-"]
    least = least_bandwidth(advice.shape, best.form, speed)
    return [
        name,
        best.form.name,
        f"{best.resident.value / 1e9:.1f}",
        advice_view.seconds(best.first_token),
        advice_view.spread(best.decode_rate(1)),
        advice_view.rate(best.decode_rate(8)),
        f"{least / 1e9:.0f}",
    ]


def _say(advices: list[Advice], machine: Machine, device: str | None) -> None:
    origin = "measured here" if machine.speeds.measured else "from its specification, so the ranges are wide"
    output.note(f"\nPredicted, {origin}." + (f" Note: {machine.speeds.note}." if machine.speeds.note else ""))
    advice_view.say_of_card(machine)
    fitting = [advice for advice in advices if advice.best is not None]
    if fitting:
        where = "" if device is None else f" --device {output.plain(device)}"
        output.note(f"Every format of one of them:  aiasst profile {output.plain(fitting[-1].name)}{where}")


def _list_devices(*, json: bool) -> None:
    from aiasst.profile import library

    described = {name: library.describe(name) for name in library.names()}
    if json:
        output.document({name: description.model_dump(mode="json") for name, description in described.items()})
        return
    rows = [
        [
            name,
            description.title,
            f"{description.memory.gibibytes:g} GiB, {description.memory.gigabytes_per_second:g} GB/s",
            " + ".join(f"{cores.count} x {cores.name}" for cores in description.cores),
        ]
        for name, description in described.items()
    ]
    output.table("Machines for --device", ["name", "machine", "memory", "cores"], rows)
