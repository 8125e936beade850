"""A conversation as a file: what /save and --resume write and read. Knows no engine and no terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from aiasst.artifacts.document import Document, read_json, write_text_atomically
from aiasst.chat.conversation import Conversation, Turn
from aiasst.errors import ArtifactError, PromptError, ResourceError
from aiasst.version import __version__

TRANSCRIPT_VERSION: Literal[1] = 1


class TurnFields(Document):
    """One turn."""

    prompt: str
    answer: str
    finish_reason: Literal["stop", "length", "cancelled", "deadline"]


class Transcript(Document):
    """The file."""

    schema_version: Literal[1] = TRANSCRIPT_VERSION
    aiasst_version: str = __version__
    mode: Literal["chat", "completion"]
    model: str
    """Name of the model folder, for people: another model may go on with it."""
    system: str | None = None
    turns: tuple[TurnFields, ...]


def transcript_of(conversation: Conversation, model: str) -> Transcript:
    """What there is to write of a conversation."""
    turns = tuple(
        TurnFields(prompt=turn.prompt, answer=turn.answer, finish_reason=turn.finish_reason)
        for turn in conversation.turns
    )
    return Transcript(mode=conversation.mode, model=model, system=conversation.system, turns=turns)


def save(path: Path, transcript: Transcript, *, force: bool = False) -> None:
    """Write the file, whole or not at all.

    Raises:
        ArtifactError: it exists and `force` is not set.
        ResourceError: the place cannot be written.
    """
    if path.is_dir():
        raise ArtifactError(f"{path} is a folder", f"/save {path / 'chat.json'}")
    if path.exists() and not force:
        raise ArtifactError(f"{path} exists", f"/save {path} force  replaces it")
    try:
        write_text_atomically(path, transcript.to_json())
    except OSError as error:
        raise ResourceError(f"may not write {path}: {error.strerror}", "choose another place") from error


def load(path: Path) -> Transcript:
    """Read the file.

    Raises:
        ArtifactError: absent, broken, of another version, or with an unknown key.
    """
    hint = "name a file that /save wrote"
    try:
        data = read_json(path, "conversation", hint)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}", hint) from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != TRANSCRIPT_VERSION:
        raise ArtifactError(f"{path} has schema version {version}, this program reads {TRANSCRIPT_VERSION}", hint)
    return Transcript.parse(data, str(path))


def restore(conversation: Conversation, transcript: Transcript) -> None:
    """Put what was said into `conversation`, in place of what it has.

    Raises:
        PromptError: it was held in the other mode.
    """
    if transcript.mode != conversation.mode:
        raise PromptError(
            f"this conversation was held in {transcript.mode} mode, and this model has {conversation.mode} mode",
            f"load it with a model like '{transcript.model}'",
        )
    conversation.system = transcript.system
    conversation.turns[:] = [Turn(turn.prompt, turn.answer, turn.finish_reason) for turn in transcript.turns]
