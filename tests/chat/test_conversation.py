"""Turns: what is sent, what is remembered, what an interruption leaves."""

from __future__ import annotations

import itertools

import pytest

from aiasst.chat.conversation import Conversation, Mode, Turn
from aiasst.engine.requests import Sampling
from aiasst.errors import PromptError
from tests.fake_text_engine import FakeTextEngine, rendered


def begin(engine: FakeTextEngine, mode: Mode = "chat", **more: object) -> Conversation:
    ticks = itertools.count()
    sampling = Sampling(max_tokens=4, seed=10)
    return Conversation(engine, mode, sampling, clock=lambda: float(next(ticks)), **more)  # type: ignore[arg-type]


def say(conversation: Conversation, text: str) -> str:
    return "".join(conversation.ask(text))


def test_the_history_and_the_system_message_are_sent() -> None:
    engine = FakeTextEngine()
    chat = begin(engine, system="Be kind.")
    first = say(chat, "Hello")
    second = say(chat, "And now?")
    assert rendered(engine.submitted[0]) == "<system> Be kind. <user> Hello"
    assert rendered(engine.submitted[1]) == f"<system> Be kind. <user> Hello <assistant> {first} <user> And now?"
    assert [(t.prompt, t.answer, t.finish_reason) for t in chat.turns] == [
        ("Hello", first, "length"),
        ("And now?", second, "length"),
    ]


def test_pieces_come_one_by_one_and_are_counted() -> None:
    chat = begin(FakeTextEngine())
    assert len(list(chat.ask("Hello"))) == 4
    (turn,) = chat.turns
    assert turn.usage is not None
    assert turn.timing is not None
    assert (turn.usage.prompt_tokens, turn.usage.completion_tokens) == (2, 4)
    assert 0 < turn.timing.first_token < turn.timing.total
    assert chat.tokens == 6


def test_every_answer_has_its_own_seed_and_the_same_ones_again() -> None:
    seeds = []
    for _ in range(2):
        engine = FakeTextEngine()
        chat = begin(engine)
        say(chat, "a")
        say(chat, "b")
        seeds.append([request.sampling.seed for request in engine.submitted])
    assert seeds[0] == seeds[1] == [10, 11]


def test_in_completion_mode_one_text_grows_until_the_model_ends_it() -> None:
    engine = FakeTextEngine(template=False)
    chat = begin(engine, "completion")
    first = say(chat, "Once upon")
    assert chat.open_text == "Once upon" + first
    more = say(chat, "")
    assert engine.submitted[1].prompt == "Once upon" + first
    say(chat, "and fast")
    assert engine.submitted[2].prompt == "Once upon" + first + more + " and fast"
    assert chat.open_text == ""  # the model ended it
    say(chat, "There was")
    assert engine.submitted[3].prompt == "There was"


def test_completion_mode_knows_no_system_message() -> None:
    with pytest.raises(PromptError, match="no chat template"):
        begin(FakeTextEngine(), "completion", system="Be kind.")


def test_an_interrupted_answer_stays_as_far_as_it_came() -> None:
    engine = FakeTextEngine()
    chat = begin(engine)
    said: list[str] = []
    for piece in chat.ask("Hello", lambda: len(said) == 2):
        said.append(piece)
    assert chat.turns[0].answer == "".join(said)
    assert chat.turns[0].finish_reason == "cancelled"
    assert len(said) == 2
    assert not engine.busy


def test_an_answer_without_a_word_is_no_turn() -> None:
    class Slow(FakeTextEngine):
        def step(self):  # type: ignore[no-untyped-def]
            return super().step() if any(a.cancelled for a in self.answers.values()) else []

    chat = begin(Slow())
    assert list(chat.ask("Hello", lambda: True)) == []
    assert chat.turns == []


def test_leaving_the_loop_cancels() -> None:
    engine = FakeTextEngine()
    chat = begin(engine)
    for _ in chat.ask("Hello"):
        break
    assert all(answer.cancelled for answer in engine.answers.values())
    assert chat.turns == []


def test_a_conversation_beyond_the_context_is_refused_and_stays_as_it_is() -> None:
    chat = begin(FakeTextEngine(context_length=14))
    say(chat, "one two")
    before = list(chat.turns)
    with pytest.raises(PromptError, match="14") as refused:
        say(chat, "three four five six seven")
    assert refused.value.hint.startswith("/reset begins a new conversation")
    assert chat.turns == before
    chat.reset()
    say(chat, "three four five six seven")


def test_an_answer_that_fills_the_context_is_known() -> None:
    chat = begin(FakeTextEngine(context_length=5))
    say(chat, "one two")
    assert chat.full
    assert chat.turns[0].finish_reason == "length"


def test_retry_replaces_the_last_answer_with_another() -> None:
    engine = FakeTextEngine()
    chat = begin(engine)
    say(chat, "a")
    first = say(chat, "b")
    again = "".join(chat.retry())
    assert [turn.prompt for turn in chat.turns] == ["a", "b"]
    assert chat.turns[-1].answer == again != first
    assert rendered(engine.submitted[1]) == rendered(engine.submitted[2])


def test_a_retry_that_fails_keeps_the_answer() -> None:
    chat = begin(FakeTextEngine())
    with pytest.raises(PromptError, match="no answer to try again"):
        list(chat.retry())
    turn = Turn("word " * 100, "answer", "stop")
    chat.turns.append(turn)
    with pytest.raises(PromptError):
        list(chat.retry())
    assert chat.turns == [turn]
