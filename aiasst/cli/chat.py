"""`aiasst chat`: a conversation at the terminal, or lines through a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aiasst.cli import output
from aiasst.cli.options import (
    Config,
    FrequencyPenalty,
    Grammar,
    Json,
    JsonSchema,
    MaxTokens,
    MinP,
    PresencePenalty,
    Quiet,
    Regex,
    RepetitionPenalty,
    Seed,
    Speculate,
    Stop,
    Temperature,
    TopK,
    TopP,
    constraint,
    given,
)
from aiasst.errors import AiasstError, UsageError

if TYPE_CHECKING:
    from aiasst.artifacts.model_folder import ModelFolder
    from aiasst.chat import Conversation

EXAMPLES = (
    "aiasst chat\n\n"
    'aiasst chat qwen3-int4 --system "Answer in one sentence." --temperature 0.6\n\n'
    "aiasst chat qwen3-int4 --resume diary\n\n"
    'echo "Once upon a time" | aiasst chat --max-tokens 60 --seed 7'
)

_STORY = "story-7m"
_CHAT_TOKENS, _COMPLETION_TOKENS = 1024, 256
"""An answer knows its end; a text without one must be ended somewhere."""


def command(
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="A model folder; without one, the small story model.")
    ] = None,
    config: Config = None,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="The system message: what the model is to be.")
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume",
            metavar="FILE|NAME",
            help="Go on with the conversation of this file or name, or begin it; it is kept there.",
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
    json_schema: JsonSchema = None,
    regex: Regex = None,
    grammar: Grammar = None,
    speculate: Speculate = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Talk with a model, or let it continue a text.

    A model with a chat template answers; one without continues what you write.
    Ctrl-C stops an answer, Ctrl-D leaves, /help lists the commands. Nothing
    you write is stored anywhere unless you say /save or --resume.

    In a pipe every line is a turn, and only the answers are on stdout.
    """
    from aiasst.artifacts.model_folder import ModelFolder
    from aiasst.artifacts.shipped import default_model
    from aiasst.chat import Conversation
    from aiasst.engine.defaults import default_sampling
    from aiasst.run import load_text

    if json and output.is_dialogue():
        raise UsageError("--json prints one document at the end, so it is for pipes", "leave --json out")
    held = constraint(json_schema, regex, grammar)
    model = ModelFolder.open(folder or default_model())
    with output.waiting(f"loading {model.path.name} …", quiet=quiet):
        engine = load_text(model, config, speculate=seed is None if speculate is None else speculate)
        if held is not None:
            engine.check(held)
    chat = engine.tokenizer.has_chat_template
    sampling = given(
        default_sampling(model.path), max_tokens=_limit(max_tokens, chat=chat),
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty,
        frequency_penalty=frequency_penalty, presence_penalty=presence_penalty, seed=seed,
    )  # fmt: skip
    conversation = Conversation(
        engine,
        "chat" if chat else "completion",
        sampling,
        stop=tuple(stop or ()),
        constraint=held,
        system=system,
    )
    for remark in () if quiet else engine.remarks:
        output.note(f"[dim]{output.plain(remark)}[/]")
    if engine.forms and not quiet:
        output.note(f"[dim]{output.plain(engine.forms)}[/]")
    _hold(conversation, model, engine.drifted, resume=resume, json=json, quiet=quiet)
    if (paused := engine.engine.stats.paced_seconds) and not quiet:
        output.note(f"[dim]Paced: {output.paced(paused)}.[/]")


command.__name__ = "chat"


def _limit(max_tokens: int | None, *, chat: bool) -> int:
    if max_tokens is not None:
        return max_tokens
    return _CHAT_TOKENS if chat else _COMPLETION_TOKENS


def _hold(
    conversation: Conversation,
    model: ModelFolder,
    drifted: Callable[[], str],
    *,
    resume: str | None,
    json: bool,
    quiet: bool,
) -> None:
    """Begin, lead and end the conversation in the way that stdin asks for; `drifted` is asked after every turn."""
    from aiasst.chat import Kept

    name, screen = model.path.name, _Screen(answers=not json, quiet=quiet)
    for remark in _greeting(conversation, model):
        screen.note(remark)

    def watched(turned: Callable[[], None]) -> Callable[[], None]:
        def after() -> None:
            turned()
            if said := drifted():
                screen.note(said)

        return after

    if resume is None:
        _lead(conversation, screen, name, watched(lambda: None))
    else:
        system, kept = conversation.system, Kept(resume, conversation, name)
        for remark in kept.begin():
            screen.note(remark)
        conversation.system = system or conversation.system
        try:
            _lead(conversation, screen, name, watched(kept.turned))
        finally:
            for remark in kept.end():
                screen.note(remark)
    if json:
        output.document(_as_json(conversation, name))


def _lead(conversation: Conversation, screen: _Screen, name: str, turned: Callable[[], None]) -> None:
    from aiasst.chat import COMMANDS, ChatSession, PipedSession, from_stream, from_terminal

    if not output.is_dialogue():
        PipedSession(conversation, from_stream(sys.stdin), screen, model=name, turned=turned).run()
        return
    words = [f"/{word}" for word in COMMANDS]
    # Python would write the prompt into stdout, where the answers go.
    lines = from_terminal(words) if output.is_terminal() else from_stream(sys.stdin, screen.prompt)
    ChatSession(conversation, lines, screen, model=name, turned=turned).run()


def _greeting(conversation: Conversation, model: ModelFolder) -> list[str]:
    remarks, dialogue = [], output.is_dialogue()
    if dialogue:
        remarks.append(f"{model.path.name}, a context of {conversation.context_length} tokens.")
    if conversation.mode == "completion":
        remarks.append("This model has no chat template: it continues the text that you begin.")
        if _tells_stories(model):
            remarks.append(
                "It tells stories in the manner of old books" + ("; try: Once upon a time" if dialogue else ".")
            )
    if dialogue:
        remarks.append("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves.")
    return remarks


def _tells_stories(model: ModelFolder) -> bool:
    return model.manifest.source.name == _STORY


def _as_json(conversation: Conversation, model: str) -> dict[str, Any]:
    from dataclasses import asdict

    turns = [
        {
            "prompt": turn.prompt,
            "answer": turn.answer,
            "finish_reason": turn.finish_reason,
            "usage": turn.usage and asdict(turn.usage),
        }
        for turn in conversation.turns
    ]
    return {
        "model": model,
        "mode": conversation.mode,
        "system": conversation.system,
        "seed": conversation.seed,
        "turns": turns,
    }


class _Screen:
    """Answers on stdout, all else on stderr."""

    def __init__(self, *, answers: bool, quiet: bool) -> None:
        self._answers = answers
        self._quiet = quiet

    def answer(self, text: str) -> None:
        if self._answers and text:
            output.data(text, end="")

    def prompt(self, text: str) -> None:
        output.note(output.plain(text), end="")

    def note(self, text: str) -> None:
        if not self._quiet:
            output.note(f"[dim]{output.plain(text)}[/]")

    def table(self, rows: Sequence[tuple[str, str]]) -> None:
        output.facts(rows)

    def error(self, failure: AiasstError) -> None:
        output.error(failure)

    def width(self) -> int:
        return output.terminal_width()
