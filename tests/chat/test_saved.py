"""A conversation kept in a file: what it goes on with, what is told, and what never happens to it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from aiasst.chat import ChatSession, Conversation, Kept
from aiasst.chat.saved import keys_beside, load, place_of, save
from aiasst.engine.requests import Sampling
from aiasst.errors import ArtifactError, PromptError, ResourceError, UsageError
from tests.chat.conftest import RecordingScreen, Typist
from tests.fake_text_engine import FakeTextEngine

Types = Callable[..., Typist]


def conversation(mode: str = "chat") -> Conversation:
    return Conversation(FakeTextEngine(), mode, Sampling(max_tokens=4, seed=10))  # type: ignore[arg-type]


def said(chat: Conversation, *texts: str) -> Conversation:
    for text in texts:
        list(chat.ask(text))
    return chat


def test_the_first_turn_after_loading_reads_what_is_new_only(tmp_path: Path) -> None:
    first, second, path = said(conversation(), "Hello", "And you"), conversation(), tmp_path / "talk.json"
    assert [note.split()[0] for note in save(path, first, "m")] == ["Saved", "Its"]
    assert keys_beside(path).name == "talk.json.kv"
    notes = load(path, second)
    words = len(keys_beside(path).read_text().split())
    assert notes == [f"Loaded 2 turns from {path}.", f"{words} tokens of it need not be read again."]
    list(second.ask("Good"))
    usage = second.turns[-1].usage
    assert usage is not None and usage.cached_tokens >= words
    assert [turn.answer for turn in second.turns[:2]] == [turn.answer for turn in first.turns]


def test_a_text_keeps_its_keys_and_one_that_has_ended_has_none(tmp_path: Path) -> None:
    text, ended = said(conversation("completion"), "Once"), said(conversation("completion"), "Once fast")
    assert len(save(tmp_path / "a.json", text, "m")) == 2
    assert save(tmp_path / "b.json", ended, "m") == [f"Saved 1 turn to {tmp_path / 'b.json'}."]
    assert not keys_beside(tmp_path / "b.json").exists()
    assert len(save(tmp_path / "c.json", conversation(), "m")) == 1


def test_keys_that_cannot_be_used_are_a_note_and_the_messages_are_there(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    save(path, said(conversation(), "Hello"), "m")
    keys_beside(path).write_text("damaged")
    again = conversation()
    assert load(path, again) == [f"Loaded 1 turn from {path}.", "It is read anew: talk.json.kv is damaged."]
    assert [turn.prompt for turn in again.turns] == ["Hello"]
    keys_beside(path).unlink()
    assert load(path, again) == [f"Loaded 1 turn from {path}."]


def test_keys_that_cannot_be_written_are_a_note(tmp_path: Path) -> None:
    class Full(FakeTextEngine):
        def save_prefix(self, *arguments: object) -> int:
            raise ResourceError("the disk is full", "")

    chat = said(Conversation(Full(), "chat", Sampling(max_tokens=4)), "Hello")
    assert save(tmp_path / "a.json", chat, "m")[1] == "Its keys and values are not saved: the disk is full."
    assert (tmp_path / "a.json").exists()


def test_kept_after_every_turn_and_gone_on_with(tmp_path: Path, screen: RecordingScreen, typed: Types) -> None:
    path = tmp_path / "talk.json"

    def talk(*lines: str) -> list[str]:
        chat = conversation()
        kept = Kept(str(path), chat, "m")
        notes = kept.begin()
        ChatSession(chat, typed(*lines), screen, model="m", turned=kept.turned).run()
        return notes + kept.end()

    notes = talk("Hello", "/nonsense")
    assert notes[0] == f"A new conversation; it will be kept in {path}."
    assert "beside it (talk.json.kv)" in notes[1]
    assert talk("And you", "/exit")[0] == f"Loaded 1 turn from {path}."
    assert [turn["prompt"] for turn in json.loads(path.read_text())["turns"]] == ["Hello", "And you"]
    before = path.read_bytes(), keys_beside(path).stat().st_mtime_ns
    assert len(talk("/stats")) == 2  # nothing said, nothing written
    talk("/reset")
    assert (path.read_bytes(), keys_beside(path).stat().st_mtime_ns) == before


def test_a_file_that_is_no_conversation_stays_as_it_is(tmp_path: Path) -> None:
    for text in ("my notes", '{"a": 1}'):
        path = tmp_path / "notes.json"
        path.write_text(text)
        with pytest.raises(ArtifactError):
            Kept(str(path), conversation(), "m").begin()
        assert path.read_text() == text
    save(tmp_path / "text.json", said(conversation("completion"), "Once"), "m")
    with pytest.raises(PromptError, match="completion mode"):
        Kept(str(tmp_path / "text.json"), conversation(), "m").begin()
    with pytest.raises(ResourceError, match="there is no folder"):
        Kept(str(tmp_path / "absent" / "talk.json"), conversation(), "m").begin()


def test_a_name_is_a_file_among_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "aiasst" / "chats" / "diary.json"
    assert place_of("diary") == place
    assert place_of("talk.json") == Path("talk.json")
    assert place_of("./diary") == Path("diary")
    (tmp_path / "plain").write_text("")
    assert place_of("plain") == Path("plain")
    for wrong in (".hidden", "", "a b", "-x"):
        with pytest.raises(UsageError, match="no name"):
            place_of(wrong)
    Kept("diary", conversation(), "m").begin()
    assert place.parent.is_dir()
    (tmp_path / "other").write_text("")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "other"))
    with pytest.raises(ResourceError, match="may not make the folder"):
        Kept("diary", conversation(), "m").begin()


def test_every_system_has_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for name in ("XDG_DATA_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for system, place in (
        ("win32", "AppData/Local"),
        ("darwin", "Library/Application Support"),
        ("linux", ".local/share"),
    ):
        monkeypatch.setattr(sys, "platform", system)
        assert place_of("diary") == tmp_path / place / "aiasst" / "chats" / "diary.json"
