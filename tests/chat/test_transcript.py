"""/save and /load: what is written is read again, nothing else is, and nothing is overwritten unasked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiasst.chat.conversation import Conversation, Turn
from aiasst.chat.transcript import Transcript, load, restore, save, transcript_of
from aiasst.engine.requests import Sampling
from aiasst.errors import ArtifactError, PromptError, ResourceError
from tests.fake_text_engine import FakeTextEngine

UNICODE = st.text(st.characters(codec="utf-8"))
REASONS = st.sampled_from(["stop", "length", "cancelled", "deadline"])


def conversation(mode: str = "chat") -> Conversation:
    return Conversation(FakeTextEngine(), mode, Sampling())  # type: ignore[arg-type]


def saved(tmp_path: Path) -> Path:
    chat = conversation()
    chat.system = "Be kind."
    chat.turns.append(Turn("Hello", "Good day", "stop"))
    path = tmp_path / "chat.json"
    save(path, transcript_of(chat, "some-model"))
    return path


def test_saved_and_loaded(tmp_path: Path) -> None:
    chat = conversation()
    restore(chat, load(saved(tmp_path)))
    assert chat.system == "Be kind."
    assert chat.turns == [Turn("Hello", "Good day", "stop")]


@given(st.lists(st.tuples(UNICODE, UNICODE, REASONS)), st.none() | UNICODE.filter(bool))
def test_every_conversation_survives(turns: list[tuple[str, str, str]], system: str | None) -> None:
    chat, again = conversation(), conversation()
    chat.system = system
    chat.turns[:] = [Turn(*turn) for turn in turns]  # type: ignore[arg-type]
    text = transcript_of(chat, "m").to_json()
    restore(again, Transcript.parse(json.loads(text), "it"))
    assert (again.turns, again.system) == (chat.turns, chat.system)


def test_a_file_is_replaced_only_with_force(tmp_path: Path) -> None:
    path = saved(tmp_path)
    before = path.read_text()
    empty = transcript_of(conversation(), "m")
    with pytest.raises(ArtifactError, match="exists") as refused:
        save(path, empty)
    assert "force" in refused.value.hint
    assert path.read_text() == before
    save(path, empty, force=True)
    assert load(path).turns == ()


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    empty = transcript_of(conversation(), "m")
    with pytest.raises(ResourceError, match="may not write"):
        save(tmp_path / "absent" / "chat.json", empty)
    with pytest.raises(ArtifactError, match="is a folder"):
        save(tmp_path, empty)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"extra": 1}, "unknown key 'extra'"),
        ({"schema_version": 2}, "schema version 2"),
        ({"turns": [{"prompt": "a", "answer": "b", "finish_reason": "bored"}]}, "finish_reason"),
        ({"mode": "song"}, "mode"),
    ],
)
def test_what_is_no_conversation_is_refused(tmp_path: Path, change: dict[str, object], words: str) -> None:
    path = saved(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ArtifactError, match=words):
        load(path)


def test_absent_broken_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no conversation"):
        load(tmp_path / "absent.json")
    with pytest.raises(ArtifactError, match="is a folder"):
        load(tmp_path)
    for text in ("{", "[]", "3"):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(ArtifactError):
            load(tmp_path / "x.json")


def test_a_conversation_of_the_other_mode_is_refused(tmp_path: Path) -> None:
    text = conversation("completion")
    text.turns.append(Turn("Once", " upon", "length"))
    with pytest.raises(PromptError, match="held in chat mode"):
        restore(text, load(saved(tmp_path)))
    assert text.turns == [Turn("Once", " upon", "length")]
