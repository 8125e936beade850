"""`aiasst run`: a file of prompts to a file of answers."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aiasst.cli import output
from aiasst.cli.options import (
    Config,
    Folder,
    FrequencyPenalty,
    Json,
    MaxTokens,
    MinP,
    PresencePenalty,
    Quiet,
    RepetitionPenalty,
    Seed,
    Speculate,
    Stop,
    Temperature,
    TopK,
    TopP,
    given,
)
from aiasst.errors import ArtifactError, UsageError

if TYPE_CHECKING:
    from aiasst.artifacts.model_folder import ModelFolder
    from aiasst.run import EncodeSummary, Summary

EXAMPLES = (
    "aiasst run story-int4 --config device.json prompts.jsonl -o answers.jsonl\n\n"
    "cat prompts.jsonl | aiasst run story-int4 - -o - --max-tokens 40 > answers.jsonl\n\n"
    "aiasst run minilm-w8a8 texts.jsonl -o vectors.npy\n\n"
    'A row:  {"id": "a", "prompt": "Once upon a time", "max_tokens": 40}  or  '
    '{"id": "b", "messages": [{"role": "user", "content": "Hello"}]}  or, for an encoder,  '
    '{"id": "c", "text": "A cat sleeps."}'
)


def command(
    folder: Folder,
    prompts: Annotated[Path, typer.Argument(metavar="PROMPTS", help="JSON Lines, one row a line; - is stdin.")],
    answers: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Answers, as JSON Lines; - is stdout.")
    ],
    config: Config = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Throw the answers of an earlier start away, instead of going on.")
    ] = False,
    prefix_cache: Annotated[
        Path | None,
        typer.Option(
            "--prefix-cache",
            metavar="DIR",
            help="Keep there what prompts begin with in common, for the next job; it is computed once in any case.",
        ),
    ] = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    frequency_penalty: FrequencyPenalty = None,
    presence_penalty: PresencePenalty = None,
    seed: Seed = None,
    stop: Stop = None,
    speculate: Speculate = None,
    top: Annotated[
        int | None,
        typer.Option("--top", metavar="N", min=1, help="Tell N labels or fills of a text.", rich_help_panel="Encoders"),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Answer a file of prompts, several at once.

    Answers are appended as they finish, each with the id of its row. The same
    command continues an interrupted job: no row is lost or answered twice.
    A row that cannot be answered gets an error, and the others go on.

    A row has "prompt" or "messages". It may have "id" (else the line number
    is its id) and max_tokens, temperature, top_k, top_p, min_p,
    repetition_penalty, frequency_penalty, presence_penalty, seed, stop,
    which go before the options here. Where neither says anything, what the
    checkpoint recommends holds. Rows alone have logit_bias, logprobs, and
    json_schema, regex or grammar: what the answer must be.

    A model that embeds or classifies takes rows with "text" (and "pair", where
    two texts are read together) and gives vectors, labels, labels of tokens,
    fills of a mask or a relevance score; vectors also as -o FILE.npy, with
    their ids in FILE.ids.jsonl. A text that is too long is cut, and said to be.
    """
    from aiasst.artifacts.model_folder import ModelFolder
    from aiasst.engine.defaults import default_sampling
    from aiasst.run import DECODER_TASK, run

    if json and answers == Path("-"):
        raise UsageError("stdout cannot be both the answers (-o -) and the summary (--json)", "name a file with -o")
    model = ModelFolder.open(folder)
    sampling = {
        "max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p,
        "repetition_penalty": repetition_penalty, "frequency_penalty": frequency_penalty,
        "presence_penalty": presence_penalty, "seed": seed,
    }  # fmt: skip
    if model.manifest.task != DECODER_TASK and model.manifest.shape is not None:
        _refuse_for_encoders({**sampling, "stop": stop, "prefix_cache": prefix_cache, "speculate": speculate})
        _encode(model, prompts, answers, config=config, top=top, restart=restart, json=json, quiet=quiet)
        return
    if top is not None:
        raise UsageError(f"{folder} generates text, and --top is for encoders", "leave --top out")
    wanted = given(default_sampling(model.path), **sampling)
    try:
        with output.progress(quiet=quiet) as progress:
            summary = run(
                model,
                sys.stdin.buffer if prompts == Path("-") else prompts,
                _to_stdout if answers == Path("-") else answers,
                config=config,
                sampling=wanted,
                stop=tuple(stop or ()),
                restart=restart,
                prefix_cache=prefix_cache,
                speculate=speculate,
                progress=progress,
                note=(lambda text: None) if quiet else _note,
            )
    except KeyboardInterrupt:
        _say_how_to_go_on(answers)
        raise
    _show(summary, answers, json=json, quiet=quiet)


command.__name__ = "run"


def _say_how_to_go_on(answers: Path) -> None:
    if answers != Path("-"):
        output.note(f"The answers so far are in {output.plain(answers)}; the same command goes on from there.")


def _refuse_for_encoders(options: Mapping[str, object]) -> None:
    """Raise UsageError where an option was given that only a model which writes can obey."""
    named = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]
    if named:
        raise UsageError(f"this model writes no text, so {named[0]} has no meaning", f"leave {named[0]} out")


def _encode(
    model: ModelFolder,
    texts: Path,
    answers: Path,
    *,
    config: Path | None,
    top: int | None,
    restart: bool,
    json: bool,
    quiet: bool,
) -> None:
    from aiasst.run import encode_file

    try:
        with output.progress(quiet=quiet) as progress:
            summary = encode_file(
                model,
                sys.stdin.buffer if texts == Path("-") else texts,
                _to_stdout if answers == Path("-") else answers,
                config=config,
                top=top,
                restart=restart,
                progress=progress,
                note=(lambda text: None) if quiet else _note,
            )
    except KeyboardInterrupt:
        _say_how_to_go_on(answers)
        raise
    if json:
        output.document(asdict(summary))
    elif not quiet:
        output.facts(list(_encoded_facts(summary)))
    _refuse_all_errors(summary.rows, summary.errors, answers)


def _encoded_facts(summary: EncodeSummary) -> Iterator[tuple[str, str]]:
    yield "rows", f"{summary.rows}" + (f", {summary.earlier} of them answered earlier" if summary.earlier else "")
    yield "errors", str(summary.errors)
    if summary.cut:
        yield "cut", f'{summary.cut} texts are longer than the model reads; their rows have "cut_from"'
    if summary.earlier < summary.rows:
        yield "speed", f"{summary.rows_per_second:.1f} rows/s, {summary.tokens} tokens in {summary.seconds:.1f} s"


def _note(text: str) -> None:
    output.note(output.plain(text))


def _to_stdout(line: str) -> None:
    output.data(line, end="")


def _show(summary: Summary, answers: Path, *, json: bool, quiet: bool) -> None:
    if json:
        output.document(asdict(summary))
    elif not quiet:
        output.facts(list(_facts(summary)))
    _refuse_all_errors(summary.rows, summary.errors, answers)


def _refuse_all_errors(rows: int, errors: int, answers: Path) -> None:
    if rows and errors == rows:
        raise ArtifactError(f"none of the {rows} rows could be answered", f"the reasons are in {answers}")


def _facts(summary: Summary) -> Iterator[tuple[str, str]]:
    yield "rows", f"{summary.rows}" + (f", {summary.earlier} of them answered earlier" if summary.earlier else "")
    yield "errors", str(summary.errors)
    if summary.earlier < summary.rows:
        yield (
            "tokens",
            f"{summary.completion_tokens} written, {summary.prompt_tokens} read"
            + (f", {summary.cached_tokens} of them from the cache" if summary.cached_tokens else ""),
        )
        yield "speed", f"{summary.tokens_per_second:.1f} tok/s over {summary.seconds:.1f} s"
    if summary.drafted_tokens:
        yield "drafts", f"{summary.accepted_tokens} of {summary.drafted_tokens} tokens accepted"
    if summary.paced_seconds:
        yield "paced", output.paced(summary.paced_seconds)
    yield "seed", str(summary.seed)
