"""The loop: what a person sees, what a pipe gets, and which keys end what."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from aiasst.chat import ChatSession, Conversation, PipedSession, from_stream
from aiasst.chat.conversation import Timing, Turn
from aiasst.chat.lines import read_text
from aiasst.chat.session import statistics
from aiasst.engine.requests import Sampling
from aiasst.engine.text import Usage
from aiasst.errors import PromptError, UsageError
from tests.chat.conftest import RecordingScreen, Typist
from tests.fake_text_engine import FakeTextEngine, expected_words, rendered

Types = Callable[..., Typist]


def conversation(engine: FakeTextEngine | None = None, mode: str = "chat", tokens: int = 4) -> Conversation:
    return Conversation(engine or FakeTextEngine(), mode, Sampling(max_tokens=tokens, seed=10))  # type: ignore[arg-type]


def talk(chat: Conversation, lines: Typist, screen: RecordingScreen) -> RecordingScreen:
    ChatSession(chat, lines, screen, model="m").run()
    return screen


def test_a_person_sees_the_answer_as_one_paragraph(screen: RecordingScreen, typed: Types) -> None:
    chat = conversation()
    talk(chat, typed("Hello"), screen)
    assert screen.shown == " ".join(expected_words("<user> Hello", 10, 4)) + "\n\n\n"
    assert screen.notes == ["The answer was cut; --max-tokens allows longer ones."]


def test_an_error_is_shown_and_the_chat_goes_on(screen: RecordingScreen, typed: Types) -> None:
    chat = conversation()
    talk(chat, typed("word " * 100, "/rset", "/save", "/load nowhere.json", "Hello"), screen)
    assert [str(e).split(":")[0] for e in screen.errors] == [
        "the prompt has 101 tokens; the context is 64",
        "there is no command /rset",
        "/save lacks FILE",
        "there is no conversation at nowhere.json",
    ]
    assert len(chat.turns) == 1


def test_ctrl_c_ends_the_answer_and_not_the_chat(screen: RecordingScreen, typed: Types) -> None:
    pressed = []

    def press() -> None:
        if not pressed and len(screen.answers) == 2:
            pressed.append(True)
            os.kill(os.getpid(), signal.SIGINT)

    screen.on_answer = press
    chat = conversation(tokens=30)
    handler = signal.getsignal(signal.SIGINT)
    talk(chat, typed("Hello", "Again fast"), screen)
    assert [turn.finish_reason for turn in chat.turns] == ["cancelled", "stop"]
    assert 0 < len(chat.turns[0].answer.split()) < 30
    assert signal.getsignal(signal.SIGINT) is handler


def test_ctrl_c_twice_at_the_prompt_leaves(screen: RecordingScreen, typed: Types) -> None:
    lines = typed(KeyboardInterrupt, "Hello", KeyboardInterrupt, KeyboardInterrupt, "never")
    talk(conversation(), lines, screen)
    assert lines.script == ["never"]
    assert screen.notes.count("Ctrl-C again, Ctrl-D or /exit leaves.") == 2


def test_exit_leaves(screen: RecordingScreen, typed: Types) -> None:
    lines = typed("/exit", "never")
    talk(conversation(), lines, screen)
    assert lines.script == ["never"]


def test_a_model_moves_no_cursor(screen: RecordingScreen, typed: Types) -> None:
    class Rude(FakeTextEngine):
        def submit(self, request):  # type: ignore[no-untyped-def]
            super().submit(request)
            self.answers[request.id].words[:] = ["\x1b[2Jgone\x07", "\x9b31mred"]

    talk(conversation(Rude()), typed("Hello"), screen)
    assert screen.shown == "[2Jgone 31mred\n\n\n"


def test_an_empty_line_lets_a_text_go_on_and_is_nothing_in_a_chat(screen: RecordingScreen, typed: Types) -> None:
    engine = FakeTextEngine()
    text = conversation(engine, "completion")
    talk(text, typed("", "Once", "  "), screen)
    assert [turn.prompt for turn in text.turns] == ["Once", ""]
    chat = conversation()
    talk(chat, typed("", "   "), screen)
    assert chat.turns == []


def test_reset_system_stats_retry(screen: RecordingScreen, typed: Types) -> None:
    engine = FakeTextEngine()
    chat = conversation(engine)
    talk(
        chat,
        typed("/system Be kind.", "Hello", "/retry", "And?", "/stats", "/reset", "Bye", "/system -", "/system"),
        screen,
    )
    assert rendered(engine.submitted[0]) == "<system> Be kind. <user> Hello"
    assert rendered(engine.submitted[1]) == rendered(engine.submitted[0])
    assert rendered(engine.submitted[3]) == "<system> Be kind. <user> Bye"
    stats = screen.tables[0]
    assert stats["turns"] == "2"
    # <system> Be kind. <user> Hello: five; then comes <assistant>, which the first answer did not begin with here.
    assert stats["last prompt"] == "12 tokens, 5 of them from the cache"
    assert screen.notes[-1] == "There is no system message."


def test_drafts_are_told_where_there_were_any() -> None:
    chat = conversation()
    chat.turns.append(Turn("Hello", "Hi", "stop", Usage(3, 0, 9), Timing(0.1, 1)))
    assert "drafts" not in dict(statistics(chat))
    chat.turns.append(Turn("Hello", "Hi", "stop", Usage(3, 0, 9, drafted_tokens=8, accepted_tokens=5), Timing(0.1, 1)))
    assert dict(statistics(chat))["drafts"] == "5 of 8 tokens accepted"


def test_a_full_context_says_so(screen: RecordingScreen, typed: Types) -> None:
    talk(conversation(FakeTextEngine(context_length=5)), typed("one two"), screen)
    assert screen.notes == ["The context of 5 tokens is full: /reset begins anew."]


def test_save_and_load(screen: RecordingScreen, typed: Types, tmp_path: Path) -> None:
    path = tmp_path / "my chat.json"
    first, second = conversation(), conversation()
    talk(first, typed("Hello", f"/save {path}", f"/save {path}", f"/save {path} force"), screen)
    assert len(screen.errors) == 1
    assert json.loads(path.read_text())["turns"][0]["prompt"] == "Hello"
    talk(second, typed(f"/load {path}"), screen)
    assert [t.answer for t in second.turns] == [t.answer for t in first.turns]
    assert f"Loaded 1 turn from {path}." in screen.notes


def test_help_lists_every_command(screen: RecordingScreen, typed: Types) -> None:
    talk(conversation(), typed("/help"), screen)
    assert [name.split()[0] for name in screen.tables[0]] == [
        "/help", "/reset", "/retry", "/system", "/stats", "/save", "/load", "/exit",
    ]  # fmt: skip


def piped(chat: Conversation, text: str, screen: RecordingScreen) -> RecordingScreen:
    PipedSession(chat, from_stream(io.StringIO(text)), screen, model="m").run()
    return screen


def test_a_pipe_gets_the_answers_only(screen: RecordingScreen) -> None:
    chat = conversation()
    piped(chat, "Hello\n\nAgain fast\n", screen)
    assert screen.shown == "".join(turn.answer + "\n" for turn in chat.turns)
    assert [turn.prompt for turn in chat.turns] == ["Hello", "Again fast"]
    assert screen.notes == []


def test_commands_work_in_a_pipe(screen: RecordingScreen, tmp_path: Path) -> None:
    chat = conversation()
    piped(chat, f"Hello\n/retry\n/save {tmp_path / 'c.json'}\n/reset\nBye\n/exit\nnever\n", screen)
    assert [turn.prompt for turn in chat.turns] == ["Bye"]
    assert (tmp_path / "c.json").exists()


def test_a_failure_in_a_pipe_ends_the_program(screen: RecordingScreen) -> None:
    with pytest.raises(PromptError):
        piped(conversation(), "word " * 100, screen)
    with pytest.raises(UsageError):
        piped(conversation(), "/usr/bin is a folder\n", screen)


@pytest.mark.parametrize(
    ("typed_lines", "text"),
    [("one\n", "one"), ("one\\\ntwo\n", "one\ntwo"), ("one\\\n\\\ntwo", "one\n\ntwo"), ("one\\", "one"), ("", None)],
)
def test_a_backslash_continues_a_text(typed_lines: str, text: str | None) -> None:
    assert read_text(from_stream(io.StringIO(typed_lines)), ">>> ", "... ") == text


def test_a_stream_shows_prompts_where_they_are_wanted() -> None:
    shown: list[str] = []
    read_text(from_stream(io.StringIO("a\\\nb\n"), shown.append), ">>> ", "... ")
    assert shown == [">>> ", "... "]


def test_statistics_before_anything_was_said() -> None:
    assert dict(statistics(conversation())) == {"turns": "0", "seed": "10", "context": "64 tokens"}
