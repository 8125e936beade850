"""What begins with a slash: names and meanings of the commands, and a line taken apart. Executes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

from aiasst.errors import UsageError

COMMANDS: dict[str, tuple[str, str]] = {
    "help": ("", "this list"),
    "reset": ("", "begin a new conversation; the system message stays"),
    "retry": ("", "another answer to the last prompt"),
    "system": ("[TEXT]", "show the system message, or set it; - takes it away"),
    "stats": ("", "tokens, cache and speed"),
    "save": ("FILE [force]", "write the conversation, keys and values beside it; force replaces a file"),
    "load": ("FILE", "go on with a conversation from a file"),
    "exit": ("", "leave; Ctrl-D too"),
}
"""Name → (arguments, meaning)."""

_NO_COMMAND = "/help lists them; a text that begins with / is written with //"
_ALIASES = {"quit": "exit", "bye": "exit", "clear": "reset", "?": "help"}


@dataclass(frozen=True)
class Command:
    """A command and the text after it."""

    name: str
    argument: str


def parse(line: str) -> Command | str:
    """The command in a line, or the text to send: a second slash at the beginning makes text of a command.

    Raises:
        UsageError: there is no such command, or it lacks its argument.
    """
    if not line.startswith("/"):
        return line
    if line.startswith("//"):
        return line[1:]
    word, _, argument = line[1:].partition(" ")
    name = _ALIASES.get(word, word)
    if name not in COMMANDS:
        close = get_close_matches(word, COMMANDS, n=1)
        hint = f"did you mean /{close[0]}? /help lists them all" if close else _NO_COMMAND
        raise UsageError(f"there is no command /{word}", hint)
    needed, _ = COMMANDS[name]
    if needed and not needed.startswith("[") and not argument.strip():
        raise UsageError(f"/{name} lacks {needed.split()[0]}", f"/{name} {needed}")
    return Command(name, argument.strip())
