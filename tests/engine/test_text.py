"""Text in, pieces of text out, on a decoder that recites a script."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiasst.artifacts.shipped import story_checkpoint
from aiasst.engine.engine import Engine
from aiasst.engine.requests import Sampling
from aiasst.engine.text import TextEngine, TextEvent, TextRequest, Usage
from aiasst.errors import PromptError
from aiasst.tokenizer import Message, Tokenizer
from tests.engine.fakes import FakeDecoder

STORY = Tokenizer.load(story_checkpoint())
GREEDY = Sampling(max_tokens=50, temperature=0)
PROMPT = "Once upon"


class Reciter(FakeDecoder):
    """Answers any prompt with the ids of `script`, then with the end id; knows by the cache where it is."""

    vocab_size = 4096

    def __init__(self, script: str) -> None:
        super().__init__(context_length=128)
        self.script = [*STORY.encode(script), 0]

    def next_logits(self, tokens: Sequence[int]) -> np.ndarray:
        at = len(tokens) - len(STORY.encode(PROMPT))
        logits = np.zeros(self.vocab_size, np.float32)
        logits[self.script[min(max(at, 0), len(self.script) - 1)]] = 1
        return logits


def engine(script: str, slots: int = 2, tokenizer: Tokenizer = STORY) -> TextEngine:
    return TextEngine.of(tokenizer, Engine(Reciter(script), slots=slots))


def request(name: str = "a", stop: tuple[str, ...] = (), sampling: Sampling = GREEDY) -> TextRequest:
    return TextRequest(name, PROMPT, None, sampling, stop)


def joined(events: list[TextEvent], name: str = "a") -> tuple[str, str | None, Usage | None]:
    mine = [event for event in events if event.request_id == name]
    assert all(event.finished is None and event.usage is None for event in mine[:-1])
    return "".join(event.text for event in mine), mine[-1].finished, mine[-1].usage


def drained(text_engine: TextEngine) -> list[TextEvent]:
    events: list[TextEvent] = []
    while text_engine.busy:
        events += text_engine.step()
    return events


def test_an_answer_comes_in_pieces_and_ends_at_the_end_id() -> None:
    script = " a time, there was a fox 🦊 in the café."
    events = list(engine(script).generate(request()))
    text, finished, usage = joined(events)
    assert (text, finished) == (script, "stop")
    assert usage == Usage(len(STORY.encode(PROMPT)), 0, len(STORY.encode(script)))
    assert len([event for event in events if event.text]) > 5
    assert not any("\ufffd" in event.text for event in events)


@pytest.mark.parametrize("stop", [(" fox",), ("x 🦊 in", "never"), ("a fox", "fox 🦊")])
def test_a_stop_string_ends_the_answer_wherever_tokens_end(stop: tuple[str, ...]) -> None:
    script = " a time, there was a fox 🦊 in the café."
    text_engine = engine(script)
    text, finished, _ = joined(list(text_engine.generate(request(stop=stop))))
    assert (text, finished) == (script[: min(script.find(s) for s in stop if s in script)], "stop")
    assert not text_engine.busy
    assert text_engine.free_slots == 2


@pytest.mark.parametrize("stop", [(), ("the cat",), ("ox. Now",)])
def test_drafts_change_neither_text_nor_usage(stop: tuple[str, ...]) -> None:
    script = " a time." + " The dog saw the fox." * 5 + " Now the cat ran." + " The dog saw the fox." * 3
    told = []
    for speculate in (False, True):
        inner = Engine(Reciter(script), slots=1, clock=lambda: 0.0, speculate=speculate)
        asked = request(stop=stop, sampling=dataclasses.replace(GREEDY, max_tokens=100))
        told.append(joined(list(TextEngine.of(STORY, inner).generate(asked))))
        assert inner.free_slots == 1
    (plain, why, usage), (drafted, reason, used) = told
    assert usage is not None and used is not None
    assert (plain, why, usage.completion_tokens) == (drafted, reason, used.completion_tokens)
    assert 0 < used.accepted_tokens <= used.drafted_tokens
    assert usage.drafted_tokens == 0


@settings(deadline=None, max_examples=40)
@given(
    script=st.text("aé🦊 \n\u0301中", min_size=3, max_size=24).filter(
        lambda text: STORY.decode(STORY.encode(text)) == text
    ),
    begin=st.integers(0, 20),
    length=st.integers(1, 4),
)
def test_a_stop_string_of_any_characters_is_never_shown(script: str, begin: int, length: int) -> None:
    stop = script[begin % len(script) :][:length]
    events = list(engine(script).generate(request(stop=(stop,))))
    text, finished, _ = joined(events)
    assert (text, finished) == (script[: script.find(stop)], "stop")
    shown = ""
    for event in events:
        shown += event.text
        assert script.startswith(shown)  # never half a character


def test_log_probabilities_come_with_the_text_of_their_tokens() -> None:
    script = " a fox 🦊 in the café."
    wanted = dataclasses.replace(GREEDY, logprobs=2)
    events = list(engine(script).generate(request(sampling=wanted, stop=("é.",))))
    reports = [report for event in events for report in event.tokens]
    ids = STORY.encode(script)
    assert [report.chosen.id for report in reports] == ids
    assert events[-1].finished == "stop"
    for report in reports:
        assert report.likeliest[0] == report.chosen
        assert report.chosen.logprob == pytest.approx(1 - np.log(4095 + np.e), abs=1e-5)
        assert [token.logprob for token in report.likeliest[1:]] == pytest.approx([-np.log(4095 + np.e)], abs=1e-5)
    assert [report.chosen.text for report in reports][:2] == [STORY.decode([i]) for i in ids[:2]]
    assert "\ufffd" in {report.chosen.text for report in reports}  # parts of the fox
    (plain,) = {event.tokens for event in engine(script).generate(request())}
    assert plain == ()


def test_text_held_back_is_shown_when_the_answer_ends() -> None:
    text, finished, _ = joined(list(engine(" the end\n\nUs").generate(request(stop=("\n\nUser:",)))))
    assert (text, finished) == (" the end\n\nUs", "stop")
    short = dataclasses.replace(GREEDY, max_tokens=2)
    text, finished, usage = joined(list(engine(" \n\n\n").generate(request(stop=("\n\n\n\nX",), sampling=short))))
    assert finished == "length" and usage is not None
    assert usage.completion_tokens == 2
    assert text == STORY.decode(STORY.encode(" \n\n\n")[:2])


def test_requests_run_together_and_a_cancelled_one_says_so() -> None:
    text_engine = engine(" one two three four five six seven eight", slots=2)
    for name in "abc":
        text_engine.submit(request(name))
    assert text_engine.free_slots == 0
    events = [event for _ in range(6) for event in text_engine.step()]
    text_engine.cancel("a")
    events += drained(text_engine)
    text, finished, usage = joined(events, "a")
    assert finished == "cancelled"
    assert " one two three four five six seven eight".startswith(text)
    assert usage is not None and usage.completion_tokens < 8
    for name in "bc":
        assert joined(events, name)[:2] == (" one two three four five six seven eight", "stop")
    text_engine.cancel("a")
    assert not text_engine.busy


def test_leaving_the_loop_cancels_and_keeps_the_others() -> None:
    text_engine = engine(" one two three four", slots=2)
    text_engine.submit(request("other"))
    for event in text_engine.generate(request("mine")):
        if event.text:
            break
    assert text_engine.free_slots == 1
    assert joined(drained(text_engine), "other")[:2] == (" one two three four", "stop")


def test_the_second_turn_of_a_chat_is_in_the_cache() -> None:
    text_engine = engine(" a time")
    usages = [joined(list(text_engine.generate(request(str(i)))), str(i))[2] for i in range(2)]
    assert [usage.cached_tokens for usage in usages if usage] == [0, len(STORY.encode(PROMPT)) - 1]


def test_messages_need_a_template_and_are_rendered_with_it(tmp_path: Path) -> None:
    messages = (Message("user", "hello"),)
    ask = TextRequest("a", None, messages, GREEDY)
    with pytest.raises(PromptError, match="no chat template"):
        engine("x").submit(ask)
    (tmp_path / "tokenizer.json").write_bytes((story_checkpoint() / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": "<|user|>{{ messages[0].content }}<|assistant|>"}), encoding="utf-8"
    )
    text_engine = engine("x", tokenizer=Tokenizer.load(tmp_path))
    assert text_engine.encode(ask) == [1, *STORY.encode("hello"), 2]


def test_a_request_has_one_of_prompt_and_messages() -> None:
    for bad in (TextRequest("a", None, None, GREEDY), TextRequest("a", "x", (Message("user", "x"),), GREEDY)):
        with pytest.raises(PromptError, match="either a prompt or messages"):
            engine("x").submit(bad)


def test_an_empty_prompt_begins_with_the_begin_token_or_is_refused(tmp_path: Path) -> None:
    empty = TextRequest("a", "", None, GREEDY)
    assert engine("x").encode(empty) == [0]
    without = dataclasses.replace(STORY, bos_id=None)
    with pytest.raises(PromptError, match="prompt is empty"):
        engine("x", tokenizer=without).submit(empty)


def test_a_prompt_beyond_the_context_leaves_nothing_behind() -> None:
    text_engine = engine("x")
    with pytest.raises(PromptError, match="128 tokens"):
        text_engine.submit(TextRequest("a", "word " * 200, None, GREEDY))
    assert not text_engine.busy
    text_engine.submit(request())
