"""Where lines come from: a person at a terminal, or a stream. Knows no conversation.

History and editing of lines are readline's, where Python has it (not on Windows); nothing of them is written to disk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TextIO

LineSource = Callable[[str], str | None]
"""Given a prompt to show, the next line without its end; None at the end. KeyboardInterrupt where Ctrl-C is pressed."""


def from_stream(stream: TextIO, show: Callable[[str], None] = lambda prompt: None) -> LineSource:
    """Lines of a stream; `show` gets the prompts."""

    def read(prompt: str) -> str | None:
        show(prompt)
        line = stream.readline()
        return line.rstrip("\r\n") if line else None

    return read


def from_terminal(words: Sequence[str]) -> LineSource:
    """Lines that a person types; Tab completes one of `words` at the beginning of a line."""
    _set_up_editing(words)

    def read(prompt: str) -> str | None:
        try:
            return input(prompt)
        except EOFError:
            return None

    return read


def _set_up_editing(words: Sequence[str]) -> None:
    try:
        import readline
    except ImportError:
        return

    def candidate(text: str, number: int) -> str | None:
        found = [word + " " for word in words if word.startswith(text)] if text else []
        return found[number] if number < len(found) else None

    readline.set_completer(candidate)
    readline.set_completer_delims(" \t\n")
    libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
    if not libedit:
        # What is pasted stays one text, its line breaks included; Python turns this off for its own prompt.
        readline.parse_and_bind("set enable-bracketed-paste on")


def read_text(source: LineSource, prompt: str, more: str) -> str | None:
    r"""A text of one line, or of several where a line ends with a backslash; None at the end."""
    line = source(prompt)
    if line is None:
        return None
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        following = source(more)
        if following is None:
            break
        lines.append(following)
    return "\n".join(lines)
