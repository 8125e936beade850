"""Option types that several commands share, each defined once. Knows no command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from aiasst.engine.constrain import Constraint
    from aiasst.engine.requests import Sampling

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no notes; errors still show.")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A model folder, written by convert or quantize.")]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Device config, written by profile. Without one, this machine is asked briefly.",
    ),
]

USUAL_CONTEXT = 4096
Context = Annotated[
    int,
    typer.Option("--context", metavar="N", min=1, help="Tokens of prompt and answer that a sequence has room for."),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="NAME|FILE",
        help="Answer for this machine: one of aiasst advise --devices, or a device config. Without it this one is measured.",
    ),
]

_SAMPLING = "Sampling"
MaxTokens = Annotated[
    int | None,
    typer.Option("--max-tokens", metavar="N", help="End an answer after N tokens.", rich_help_panel=_SAMPLING),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature", metavar="T", help="0: always the likeliest token; 1: as trained.", rich_help_panel=_SAMPLING
    ),
]
TopK = Annotated[
    int | None,
    typer.Option("--top-k", metavar="K", help="Of the K likeliest tokens only; 0: of all.", rich_help_panel=_SAMPLING),
]
TopP = Annotated[
    float | None,
    typer.Option("--top-p", metavar="P", help="Of the likeliest that make up P together.", rich_help_panel=_SAMPLING),
]
MinP = Annotated[
    float | None,
    typer.Option(
        "--min-p", metavar="P", help="Of those P times as likely as the likeliest.", rich_help_panel=_SAMPLING
    ),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(
        "--repetition-penalty", metavar="R", help="Above 1: what was said gets less likely.", rich_help_panel=_SAMPLING
    ),
]
FrequencyPenalty = Annotated[
    float | None,
    typer.Option(
        "--frequency-penalty",
        metavar="F",
        help="Above 0: less likely with every time it was said.",
        rich_help_panel=_SAMPLING,
    ),
]
PresencePenalty = Annotated[
    float | None,
    typer.Option(
        "--presence-penalty", metavar="F", help="Above 0: less likely once it was said.", rich_help_panel=_SAMPLING
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        metavar="N",
        help="Fixes the draws: same seed and same company of rows, same answers.",
        rich_help_panel=_SAMPLING,
    ),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        "--stop", metavar="TEXT", help="End an answer before TEXT; may be repeated.", rich_help_panel=_SAMPLING
    ),
]
Speculate = Annotated[
    bool | None,
    typer.Option(
        "--speculate/--no-speculate",
        help="Repeat earlier text several tokens at a time, where that is faster. On, unless --seed asks for one text.",
    ),
]

_CONSTRAINT = "What an answer must be"
JsonSchema = Annotated[
    Path | None,
    typer.Option("--json-schema", metavar="FILE", help="JSON that fits this schema.", rich_help_panel=_CONSTRAINT),
]
Regex = Annotated[
    str | None,
    typer.Option("--regex", metavar="REGEX", help="A match of this regular expression.", rich_help_panel=_CONSTRAINT),
]
Grammar = Annotated[
    Path | None,
    typer.Option("--grammar", metavar="FILE", help="A text of this Lark grammar.", rich_help_panel=_CONSTRAINT),
]


def constraint(json_schema: Path | None, regex: str | None, grammar: Path | None) -> Constraint | None:
    """The one of the three that was given, its file read.

    Raises:
        UsageError: more than one was given.
        ArtifactError: there is no such file.
    """
    from aiasst.artifacts.document import read_text
    from aiasst.engine.constrain import Constraint
    from aiasst.errors import UsageError

    if sum(option is not None for option in (json_schema, regex, grammar)) > 1:
        raise UsageError("--json-schema, --regex and --grammar exclude each other", "give one of them")
    if json_schema is not None:
        return Constraint("json_schema", read_text(json_schema, "JSON schema", "name a file with a JSON schema"))
    if grammar is not None:
        return Constraint("grammar", read_text(grammar, "grammar", "name a file with a Lark grammar"))
    return None if regex is None else Constraint("regex", regex)


def given(base: Sampling, **options: float | None) -> Sampling:
    """`base` with those sampling options that were given. Raises UsageError for a value out of range."""
    from dataclasses import replace

    from aiasst.errors import PromptError, UsageError

    changes: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    try:
        return replace(base, **changes)
    except PromptError as error:
        raise UsageError(error.message, error.hint) from None
