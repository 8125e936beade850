"""The loop of a chat: a text or a command in, an answer out. Knows streams by their interface only, and no engine."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from aiasst.chat import saved
from aiasst.chat.commands import COMMANDS, Command, parse
from aiasst.chat.conversation import Conversation
from aiasst.chat.interrupts import held_interrupts
from aiasst.chat.lines import LineSource, read_text
from aiasst.chat.wrap import WordWrap
from aiasst.errors import AiasstError

PROMPT, MORE = ">>> ", "... "


class Screen(Protocol):
    """Where a chat is shown."""

    def answer(self, text: str) -> None:
        """A piece of an answer, as it is."""

    def note(self, text: str) -> None:
        """A remark."""

    def table(self, rows: Sequence[tuple[str, str]]) -> None:
        """Names and what belongs to them."""

    def error(self, failure: AiasstError) -> None:
        """What went wrong and what to do."""

    def width(self) -> int:
        """Columns of the terminal."""


class _Session:
    """What both kinds of sessions hold."""

    def __init__(
        self,
        conversation: Conversation,
        lines: LineSource,
        screen: Screen,
        *,
        model: str,
        turned: Callable[[], None] = lambda: None,
    ) -> None:
        """`model` is the name that is saved with the conversation; `turned` is called after every turn."""
        self._conversation = conversation
        self._lines = lines
        self._screen = screen
        self._model = model
        self._turned = turned


class ChatSession(_Session):
    """A person at a terminal: errors are shown and the chat goes on, Ctrl-C ends an answer, Ctrl-D the chat."""

    _leaving = False

    def run(self) -> None:
        """Until the person leaves."""
        warned = False
        while not self._leaving:
            try:
                text = read_text(self._lines, PROMPT, MORE)
            except KeyboardInterrupt:
                self._screen.answer("\n")
                if warned:
                    return
                warned = True
                self._screen.note("Ctrl-C again, Ctrl-D or /exit leaves.")
                continue
            warned = False
            if text is None:
                self._screen.answer("\n")
                return
            self._take(text)

    def _take(self, text: str) -> None:
        try:
            self._obey(text)
        except AiasstError as error:
            self._screen.error(error)

    def _obey(self, text: str) -> None:
        parsed = parse(text)
        if isinstance(parsed, Command):
            self._command(parsed)
        elif parsed.strip() or (self._conversation.mode == "completion" and self._conversation.open_text):
            said = parsed if parsed.strip() else ""
            self._show(lambda interrupted: self._conversation.ask(said, interrupted))

    def _command(self, command: Command) -> None:
        if command.name == "exit":
            self._leaving = True
        elif command.name == "retry":
            self._show(self._conversation.retry)
        else:
            execute(command, self._conversation, self._screen, model=self._model)

    def _show(self, ask: Callable[[Callable[[], bool]], Iterable[str]]) -> None:
        before = self._conversation.turns[-1:]
        with held_interrupts() as interrupted:
            _wrapped(ask(interrupted), self._screen)
        if self._conversation.turns[-1:] == before:
            self._screen.note("Stopped before the first word: the conversation is as it was.")
        else:
            _remark(self._conversation, self._screen)
            self._turned()
        self._screen.answer("\n")


class PipedSession(_Session):
    """Lines from a pipe: each is a turn, its answer is all that is shown, an error ends the program."""

    def run(self) -> None:
        """Until the stream ends.

        Raises:
            AiasstError: a turn or a command failed; a script must not take silence for an answer.
        """
        while (text := read_text(self._lines, "", "")) is not None:
            parsed = parse(text)
            if isinstance(parsed, str):
                if parsed.strip():
                    self._show(self._conversation.ask(parsed))
            elif parsed.name == "exit":
                return
            elif parsed.name == "retry":
                self._show(self._conversation.retry())
            else:
                execute(parsed, self._conversation, self._screen, model=self._model)

    def _show(self, pieces: Iterable[str]) -> None:
        for piece in pieces:
            self._screen.answer(piece)
        self._screen.answer("\n")
        self._turned()


def execute(command: Command, conversation: Conversation, screen: Screen, *, model: str) -> None:
    """Do what a command says, but for those that ask the model or leave.

    Raises:
        AiasstError: it cannot be done; the conversation is as it was.
    """
    if command.name == "help":
        screen.table([(f"/{name} {arguments}".strip(), meaning) for name, (arguments, meaning) in COMMANDS.items()])
        screen.note(_HELP[conversation.mode])
    elif command.name == "reset":
        conversation.reset()
        screen.note("A new conversation.")
    elif command.name == "stats":
        screen.table(list(statistics(conversation)))
    elif command.name == "system":
        _system(command.argument, conversation, screen)
    elif command.name == "save":
        path, force = _path_and_force(command.argument)
        _tell(saved.save(path, conversation, model, force=force), screen)
    elif command.name == "load":
        path, _ = _path_and_force(command.argument)
        _tell(saved.load(path, conversation), screen)


def statistics(conversation: Conversation) -> Iterator[tuple[str, str]]:
    """What the last answer took, and how full the context is."""
    yield "turns", str(len(conversation.turns))
    yield "seed", str(conversation.seed)
    last = conversation.turns[-1] if conversation.turns else None
    if last is None or last.usage is None or last.timing is None:
        yield "context", f"{conversation.context_length} tokens"
        return
    usage, timing = last.usage, last.timing
    yield "context", f"{conversation.tokens} of {conversation.context_length} tokens used"
    yield "last prompt", f"{usage.prompt_tokens} tokens, {usage.cached_tokens} of them from the cache"
    yield "last answer", f"{usage.completion_tokens} tokens ({last.finish_reason})"
    yield "first token", f"after {timing.first_token:.2f} s"
    if usage.completion_tokens > 1 and timing.total > timing.first_token:
        yield "speed", f"{(usage.completion_tokens - 1) / (timing.total - timing.first_token):.1f} tok/s"
    if usage.drafted_tokens:
        yield "drafts", f"{usage.accepted_tokens} of {usage.drafted_tokens} tokens accepted"


_HELP = {
    "chat": "Ctrl-C stops an answer. A line that ends with \\ goes on in the next. //text sends /text.",
    "completion": (
        "The model goes on with your text: an empty line lets it write more, /reset begins anew.\n"
        "Ctrl-C stops it. A line that ends with \\ goes on in the next. //text sends /text."
    ),
}


def _wrapped(pieces: Iterable[str], screen: Screen) -> None:
    """Show an answer in lines that break between words, begun without the space that a continuation has."""
    wrap, begun = WordWrap(screen.width), False
    for piece in pieces:
        text = _visible(piece)
        if not begun:
            text = text.lstrip()
            begun = bool(text)
        screen.answer(wrap.feed(text))
    screen.answer(wrap.flush() + "\n")


def _visible(text: str) -> str:
    """`text` without control characters: a model must not move the cursor or recolour the terminal."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


def _remark(conversation: Conversation, screen: Screen) -> None:
    """Why an answer ended where its end does not show it."""
    turn = conversation.turns[-1]
    if conversation.full:
        screen.note(f"The context of {conversation.context_length} tokens is full: /reset begins anew.")
    elif turn.finish_reason == "length" and conversation.mode == "chat":
        screen.note("The answer was cut; --max-tokens allows longer ones.")
    elif not turn.answer.strip():
        screen.note("The model had nothing to add.")


def _system(argument: str, conversation: Conversation, screen: Screen) -> None:
    if not argument:
        screen.note(conversation.system or "There is no system message.")
        return
    conversation.system = None if argument == "-" else argument
    screen.note("The system message is gone." if argument == "-" else "The system message is set.")


def _path_and_force(argument: str) -> tuple[Path, bool]:
    name, _, last = argument.rpartition(" ")
    force = bool(name) and last == "force"
    return Path(name.strip() if force else argument).expanduser(), force


def _tell(remarks: Iterable[str], screen: Screen) -> None:
    for remark in remarks:
        screen.note(remark)
