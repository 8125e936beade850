"""A conversation on disk: its messages, and beside them what the model made of them. Knows no terminal and no format.

    talk.json       what was said (transcript.py): readable, and all that is needed to go on with any model
    talk.json.kv    its keys and values (engine/prefix_file.py), so that the same model need not read it again

The second file is a convenience: where it is missing, damaged or another model's, the conversation is read anew, and a
note says why. What is in it is not checked against the messages; take it from people only whose programs you would run.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from aiasst.chat import transcript
from aiasst.chat.conversation import Conversation
from aiasst.errors import AiasstError, ArtifactError, ResourceError, UsageError
from aiasst.sizes import human_bytes


def keys_beside(path: Path) -> Path:
    """The file of keys and values that belongs to a conversation."""
    return path.with_name(path.name + ".kv")


def save(path: Path, conversation: Conversation, model: str, *, force: bool = False) -> list[str]:
    """Write both files; gives what there is to say. That keys and values cannot be written is a note, no failure.

    Raises:
        ArtifactError: there is a file of messages and `force` is not set.
        ResourceError: the place cannot be written.
    """
    transcript.save(path, transcript.transcript_of(conversation, model), force=force)
    return [f"Saved {turns(conversation)} to {path}.", *_save_keys(path, conversation)]


def load(path: Path, conversation: Conversation) -> list[str]:
    """Put what was said into `conversation` and its keys and values into the engine; gives what there is to say.

    Raises:
        ArtifactError: the messages are absent, broken, or of another version.
        PromptError: they are of the other mode.
    """
    transcript.restore(conversation, transcript.load(path))
    return [f"Loaded {turns(conversation)} from {path}.", *_load_keys(path, conversation)]


def turns(conversation: Conversation) -> str:
    """How many turns it has, in words."""
    count = len(conversation.turns)
    return f"{count} turn" if count == 1 else f"{count} turns"


def place_of(name: str) -> Path:
    """The file that a name means: itself where it looks like a file, else one among the user's own conversations.

    Raises:
        UsageError: it can be neither.
    """
    given = Path(name).expanduser()
    if given.suffix == ".json" or "/" in name or os.sep in name or given.is_file():
        return given
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UsageError(
            f"{name!r} is no name for a conversation", "take letters and digits, or name a file: talk.json"
        )
    return _data_folder() / "chats" / f"{name}.json"


class Kept:
    """A conversation that goes on from a file and is kept there: messages after every turn, keys and values at the end."""

    def __init__(self, name: str, conversation: Conversation, model: str) -> None:
        """`name` is a file or a name (see `place_of`); `model` is the name that is saved with the conversation."""
        self.path = place_of(name)
        self._conversation = conversation
        self._model = model
        self._changed = False

    def begin(self) -> list[str]:
        """Load what is there; gives what there is to say.

        Raises:
            ArtifactError, PromptError: the file is no conversation, or one of the other mode; it stays as it is.
            ResourceError: there is no folder to keep it in.
        """
        if self.path.exists():
            return load(self.path, self._conversation)
        folder = self.path.parent
        try:
            if folder == _data_folder() / "chats":
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ResourceError(f"may not make the folder {folder}: {error.strerror}", "name a file instead") from error
        if not folder.is_dir():
            raise ResourceError(f"there is no folder {folder}", "make it, or name a file elsewhere")
        return [f"A new conversation; it will be kept in {self.path}."]

    def turned(self) -> None:
        """Write the messages, now that there is one more.

        Raises:
            ArtifactError, ResourceError: the place cannot be written.
        """
        transcript.save(self.path, transcript.transcript_of(self._conversation, self._model), force=True)
        self._changed = True

    def end(self) -> list[str]:
        """Write the keys and values, where something was said; gives what there is to say."""
        return _save_keys(self.path, self._conversation) if self._changed else []


def _save_keys(path: Path, conversation: Conversation) -> list[str]:
    beside = keys_beside(path)
    try:
        size = conversation.save_keys(beside)
    except AiasstError as error:
        return [f"Its keys and values are not saved: {error.message}."]
    return [f"Its keys and values take {human_bytes(size)} beside it ({beside.name})."] if size else []


def _load_keys(path: Path, conversation: Conversation) -> list[str]:
    beside = keys_beside(path)
    if not beside.exists():
        return []
    try:
        tokens = conversation.load_keys(beside)
    except ArtifactError as error:
        return [f"It is read anew: {error.message}."]
    return [f"{tokens} tokens of it need not be read again."]


def _data_folder() -> Path:
    """Where this system keeps what belongs to a user of this program."""
    if sys.platform == "win32":
        place = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        place = Path.home() / "Library" / "Application Support"
    else:
        place = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(place) / "aiasst"
