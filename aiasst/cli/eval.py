"""`aiasst eval`: what a model kept of its accuracy. Translates and prints; evaluate measures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aiasst.cli import card as cards
from aiasst.cli import output
from aiasst.cli.options import Config, Folder, Json, Quiet
from aiasst.errors import UsageError

if TYPE_CHECKING:
    from aiasst.artifacts.model_folder import ModelFolder
    from aiasst.evaluate.scoring import TaskData
    from aiasst.runtime.settings import SessionSettings

EXAMPLES = (
    "aiasst eval story-int4 --against story\n\n"
    "aiasst eval story-int4 --against story --text book.txt --tokens 40960 --write\n\n"
    "aiasst eval minilm-int8 --against minilm --task sts --data stsb.csv"
)


def command(
    folder: Folder,
    against: Annotated[
        Path | None,
        typer.Option("--against", "-a", metavar="ORIGINAL", help="The model folder it was made from, to compare with."),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            "--text",
            metavar="FILE",
            help=".txt or .jsonl, also .xz. Default: a text that comes with aiasst and that calibration never sees.",
        ),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", metavar="N", min=1, help="Read at most N tokens of it. Default: 16384.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", metavar="sts|classification", help="Score an encoder on labelled data."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="FILE.csv",
            help="Lines of: sentence, sentence, score (sts) or text, label (classification).",
        ),
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", "-w", help="Keep the card in DIR: card.json, and CARD.md for people.")
    ] = False,
    config: Config = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure what a model kept of its accuracy: how it predicts a text, alone or beside its original.

    Runs through the execution provider that runs the model. With --against:
    perplexity before and after, KL divergence, agreement, retained accuracy.
    Encoders (which embed or classify) are compared by their vectors.
    """
    from aiasst.artifacts.card import write_card
    from aiasst.artifacts.model_folder import ModelFolder
    from aiasst.evaluate.measure import measure_card

    task_data = _task_data(task, data)
    model = ModelFolder.open(folder)
    original = None if against is None else ModelFolder.open(against)
    settings = _settings(model, config)
    with output.progress(quiet=quiet) as progress:
        card = measure_card(
            model, original, text=text, tokens=tokens, task=task_data, settings=settings, progress=progress
        )
    if write:
        write_card(model, card)
    if json:
        output.document(card.model_dump(mode="json"))
    else:
        cards.show(card)
    if write and not quiet:
        output.note(f"Written to {output.plain(folder)}: card.json and CARD.md.")


command.__name__ = "eval"


def _task_data(task: str | None, data: Path | None) -> TaskData | None:
    if (task is None) != (data is None):
        missing = "--data FILE.csv" if data is None else "--task sts or --task classification"
        raise UsageError("--task and --data belong together", f"add {missing}")
    if task is None or data is None:
        return None
    from aiasst.evaluate.scoring import TaskData

    return TaskData(task, data)


def _settings(model: ModelFolder, config: Path | None) -> SessionSettings:
    from aiasst.artifacts.device import load_device_config
    from aiasst.profile import check_machine, quick_config
    from aiasst.runtime.settings import settings_from

    if config is None:
        return settings_from(quick_config(model).decisions)
    device = load_device_config(config)
    check_machine(device)
    return settings_from(device.decisions)
