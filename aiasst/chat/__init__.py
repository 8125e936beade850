"""Talking with a model: a conversation, its commands, its file, and the loop at a terminal or in a pipe.

conversation.py  what was said and what to ask next; no terminal
commands.py      what begins with a slash
transcript.py    a conversation as a file
saved.py         that file with the model's keys and values beside it; going on from it
lines.py         where lines come from
wrap.py          lines broken between words while the text is coming
interrupts.py    Ctrl-C as a question
session.py       the loop
"""

from __future__ import annotations

from aiasst.chat.commands import COMMANDS
from aiasst.chat.conversation import Conversation, Mode, Turn
from aiasst.chat.lines import from_stream, from_terminal
from aiasst.chat.saved import Kept
from aiasst.chat.session import ChatSession, PipedSession, Screen

__all__ = [
    "COMMANDS",
    "ChatSession",
    "Conversation",
    "Kept",
    "Mode",
    "PipedSession",
    "Screen",
    "Turn",
    "from_stream",
    "from_terminal",
]
