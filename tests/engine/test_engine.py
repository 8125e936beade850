"""The engine on a session that remembers every token in the cache: any order of work gives the answers computed alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiasst.engine.engine import Engine
from aiasst.engine.requests import Event, Request, Sampling
from aiasst.engine.sampling import sample
from aiasst.errors import PromptError, ResourceError
from tests.engine.fakes import VOCABULARY, Drawn, FakeDecoder, next_logits

GREEDY = Sampling(max_tokens=8, temperature=0)
PROMPT = st.lists(st.integers(0, 3), min_size=1, max_size=40).map(tuple)
SAMPLING = st.builds(
    Sampling,
    max_tokens=st.integers(1, 12),
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    top_k=st.sampled_from([0, 5]),
    top_p=st.sampled_from([1.0, 0.8]),
    min_p=st.sampled_from([0.0, 0.1]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    presence_penalty=st.sampled_from([0.0, -0.5]),
    logit_bias=st.sampled_from([{}, {3: -100, 4: 2.5}]),
    seed=st.integers(0, 5),
)


def expected(prompt: tuple[int, ...], sampling: Sampling, stop_ids: tuple[int, ...] = (), context: int = 64) -> list:
    """[tokens, why it ended], computed without an engine."""
    tokens = list(prompt)
    generator = np.random.default_rng(sampling.seed)
    while True:
        row = Drawn(sampling, np.array(tokens), len(prompt), generator)
        token = int(sample(next_logits(tokens)[None], [row])[0])
        if token in stop_ids:
            return [tokens[len(prompt) :], "stop"]
        tokens.append(token)
        if len(tokens) - len(prompt) == sampling.max_tokens or len(tokens) == context:
            return [tokens[len(prompt) :], "length"]


def run(engine: Engine) -> dict[str, list]:
    answers: dict[str, list] = {}
    while engine.busy:
        collect(engine.step(), answers)
    return answers


def collect(events: list[Event], answers: dict[str, list]) -> None:
    for event in events:
        answer = answers.setdefault(event.request_id, [[], None])
        assert answer[1] is None, "an event after the end"
        if event.token is not None:
            answer[0].append(event.token)
        answer[1] = event.finished


@settings(max_examples=150, deadline=None)
@given(
    jobs=st.lists(st.tuples(PROMPT, SAMPLING, st.integers(0, 20)), min_size=1, max_size=8),
    slots=st.integers(1, 4),
    chunk=st.integers(1, 16),
    ceiling=st.none() | st.integers(64 * 32 + 800, 64 * 32 * 4 + 800),
)
def test_together_as_alone(jobs: list, slots: int, chunk: int, ceiling: int | None) -> None:
    engine = Engine(FakeDecoder(), slots=slots, chunk=chunk, memory_ceiling_bytes=ceiling)
    answers: dict[str, list] = {}
    now = 0
    while engine.busy or now <= 20:
        for index, (prompt, sampling, arrival) in enumerate(jobs):
            if arrival == now:
                engine.submit(Request(str(index), prompt, sampling, (7, 8)))
        collect(engine.step(), answers)
        now += 1
        assert now < 2000
    for index, (prompt, sampling, _) in enumerate(jobs):
        assert answers[str(index)] == expected(prompt, sampling, (7, 8))


@settings(max_examples=100, deadline=None)
@given(
    jobs=st.lists(st.tuples(PROMPT, st.none() | st.integers(0, 25)), min_size=1, max_size=8),
    slots=st.integers(1, 3),
    chunk=st.integers(1, 16),
)
def test_a_cancelled_request_ends_once_and_leaves_the_others_alone(jobs: list, slots: int, chunk: int) -> None:
    engine = Engine(FakeDecoder(), slots=slots, chunk=chunk)
    answers: dict[str, list] = {}
    for index, (prompt, _) in enumerate(jobs):
        engine.submit(Request(str(index), prompt, GREEDY))
    now = 0
    while engine.busy:
        for index, (_, cancelled_at) in enumerate(jobs):
            if cancelled_at == now:
                engine.cancel(str(index))
        collect(engine.step(), answers)
        now += 1
    for index, (prompt, _) in enumerate(jobs):
        tokens, finished = expected(prompt, GREEDY)
        got = answers[str(index)]
        if got[1] == "cancelled":
            assert got[0] == tokens[: len(got[0])]
        else:
            assert got == [tokens, finished]
    assert engine.free_slots == slots


def test_a_continued_conversation_takes_its_beginning_from_the_cache() -> None:
    engine = Engine(FakeDecoder(), slots=2)
    engine.submit(Request("one", (1, 2, 3, 4), GREEDY))
    first = run(engine)["one"][0]
    longer = (1, 2, 3, 4, *first, 5, 6)
    engine.submit(Request("two", longer, GREEDY))
    events: list[Event] = []
    while engine.busy:
        events += engine.step()
    # The last token of the answer was never fed back, so its keys are not there.
    assert events[-1].cached_tokens == 4 + len(first) - 1
    assert [e.token for e in events] == expected(longer, GREEDY)[0]


def test_the_same_prompt_again_computes_its_last_token_only() -> None:
    decoder = FakeDecoder()
    engine = Engine(decoder, slots=1)
    for name in ("one", "two"):
        engine.submit(Request(name, (1, 2, 3, 4, 5), GREEDY))
        assert run(engine)[name] == expected((1, 2, 3, 4, 5), GREEDY)
    assert engine.stats.prefill_tokens == 5 + 1
    assert engine.stats.cached_tokens == 4


def test_a_shared_beginning_is_copied_from_a_row_under_way() -> None:
    engine = Engine(FakeDecoder(), slots=3)
    shared = (9, 8, 7, 6, 5)
    engine.submit(Request("a", (*shared, 1), GREEDY))
    engine.submit(Request("b", (*shared, 2), GREEDY))
    answers = run(engine)
    assert engine.stats.cached_tokens == len(shared)
    assert answers == {"a": expected((*shared, 1), GREEDY), "b": expected((*shared, 2), GREEDY)}


def test_an_answer_ends_at_the_context() -> None:
    engine = Engine(FakeDecoder(context_length=10), slots=1)
    engine.submit(Request("a", (1, 2, 3, 4, 5, 6, 7), Sampling(max_tokens=100, temperature=0)))
    tokens, finished = run(engine)["a"]
    assert (len(tokens), finished) == (3, "length")


def test_a_prompt_beyond_the_context_is_refused_with_the_numbers() -> None:
    engine = Engine(FakeDecoder(context_length=10), slots=1)
    with pytest.raises(PromptError, match=r"the prompt has 10 tokens .* 10 tokens"):
        engine.submit(Request("a", (1,) * 10, GREEDY))
    engine.submit(Request("a", (1,) * 9, GREEDY))
    assert len(run(engine)["a"][0]) == 1


@pytest.mark.parametrize("prompt", [(), (VOCABULARY,), (-1,)])
def test_a_malformed_prompt_is_refused(prompt: tuple[int, ...]) -> None:
    engine = Engine(FakeDecoder(), slots=1)
    with pytest.raises(PromptError):
        engine.submit(Request("a", prompt, GREEDY))
    assert not engine.busy


def test_the_memory_ceiling_lowers_slots_and_refuses_with_numbers() -> None:
    per_token = 2 * 2 * 1 * 2 * 4
    room = FakeDecoder(context_length=1024)
    logits = 8 * VOCABULARY * 4
    engine = Engine(room, slots=8, memory_ceiling_bytes=logits + 3 * 256 * per_token)
    assert engine.stats.slots == 3
    assert engine.context_length == 3 * 256
    with pytest.raises(PromptError, match="memory ceiling leaves is 768 tokens"):
        engine.submit(Request("a", (1,) * 800, GREEDY))
    # A long sequence takes all the room; short ones wait for it, and the rows come back afterwards.
    engine.submit(Request("long", (1, 2) * 300, GREEDY))
    for index in range(4):
        engine.submit(Request(str(index), (index, 3), GREEDY))
    answers = run(engine)
    assert answers["long"] == expected((1, 2) * 300, GREEDY, context=1024)
    assert [answers[str(i)] for i in range(4)] == [expected((i, 3), GREEDY) for i in range(4)]
    assert engine.stats.cache_bytes <= 3 * 256 * per_token
    with pytest.raises(ResourceError, match=r"memory ceiling is 0\.1 MiB"):
        Engine(FakeDecoder(1024, weight_bytes=100_000), slots=1, memory_ceiling_bytes=100_000)


def test_rows_come_back_after_a_long_sequence() -> None:
    per_token = 2 * 2 * 1 * 2 * 4
    decoder = FakeDecoder(context_length=1024)
    engine = Engine(decoder, slots=4, memory_ceiling_bytes=4 * VOCABULARY * 4 + 4 * 256 * per_token, clock=lambda: 0.0)
    engine.submit(Request("long", (1,) * 900, GREEDY))
    run(engine)
    assert engine.stats.slots == 1
    for index in range(4):
        engine.submit(Request(str(index), (index, 3), GREEDY))
    run(engine)
    assert engine.stats.slots == 4
    assert max(rows for rows, _ in decoder.shapes) == 4


def test_an_id_under_way_is_refused_and_free_again_later() -> None:
    engine = Engine(FakeDecoder(), slots=1)
    engine.submit(Request("a", (1,), GREEDY))
    with pytest.raises(PromptError, match="under way"):
        engine.submit(Request("a", (1,), GREEDY))
    engine.cancel("a", silent=True)
    engine.cancel("a")
    assert not engine.busy
    engine.submit(Request("a", (1,), GREEDY))
    assert run(engine)["a"] == expected((1,), GREEDY)


def test_a_failed_run_leaves_the_requests_as_they_were() -> None:
    class Flaky(FakeDecoder):
        def step(self, *arguments: object, **named: object) -> np.ndarray:
            if len(self.shapes) in (1, 4):
                self.shapes.append((0, 0))
                raise ResourceError("no memory for a moment")
            return super().step(*arguments, **named)

    engine = Engine(Flaky(), slots=2, chunk=2)
    engine.submit(Request("a", (1, 2, 3), GREEDY))
    engine.submit(Request("b", (3, 2), GREEDY))
    answers: dict[str, list] = {}
    failures = 0
    while engine.busy:
        try:
            collect(engine.step(), answers)
        except ResourceError:
            failures += 1
    assert failures == 2
    assert answers == {"a": expected((1, 2, 3), GREEDY), "b": expected((3, 2), GREEDY)}


def test_a_deadline_ends_an_answer_in_line_while_read_and_while_decoded() -> None:
    now = [0.0]
    engine = Engine(FakeDecoder(), slots=1, chunk=2, clock=lambda: now[0])
    engine.submit(Request("decoded", (1, 2), GREEDY, deadline_seconds=3))
    engine.submit(Request("in line", (1, 2), GREEDY, deadline_seconds=3))
    engine.submit(Request("read", (5,) * 30, GREEDY, deadline_seconds=8))
    engine.submit(Request("patient", (4, 3), GREEDY))
    answers: dict[str, list] = {}
    while engine.busy:
        collect(engine.step(), answers)
        now[0] += 1
    assert answers["decoded"] == [expected((1, 2), GREEDY)[0][:3], "deadline"]
    assert answers["in line"] == [[], "deadline"]
    assert answers["read"] == [[], "deadline"]
    assert answers["patient"] == expected((4, 3), GREEDY)
    assert engine.free_slots == 1


def test_a_prompt_that_cannot_be_read_in_time_costs_nothing() -> None:
    class Slow(FakeDecoder):
        now = 0.0

        def step(self, ids: np.ndarray, *arguments: object, **named: object) -> np.ndarray:
            self.now += ids.shape[1]
            return super().step(ids, *arguments, **named)

    decoder = Slow()
    engine = Engine(decoder, slots=1, clock=lambda: decoder.now)
    engine.submit(Request("first", (1,) * 20, Sampling(max_tokens=1, temperature=0)))
    engine.submit(Request("hopeless", (2,) * 60, GREEDY, deadline_seconds=20 + 29))
    engine.submit(Request("cached", (1,) * 20, Sampling(max_tokens=1, temperature=0), deadline_seconds=20 + 2))
    answers = run(engine)
    assert answers["hopeless"] == [[], "deadline"]
    assert answers["cached"][1] == "length"  # what is in the cache need not be read
    assert engine.stats.prefill_tokens == 20 + 1


def test_a_higher_priority_begins_first() -> None:
    engine = Engine(FakeDecoder(), slots=1, clock=lambda: 0.0)
    for name, priority in (("low", -1), ("usual", 0), ("high", 1), ("usual too", 0)):
        engine.submit(Request(name, (1, 2), GREEDY, priority=priority))
    assert engine.stats.waiting == 4
    assert list(run(engine)) == ["high", "usual", "usual too", "low"]


@pytest.mark.parametrize(
    "wrong", [{"priority": 11}, {"priority": 1.5}, {"deadline_seconds": 0}, {"deadline_seconds": float("nan")}]
)
def test_a_priority_or_deadline_outside_its_range_is_refused(wrong: dict) -> None:
    with pytest.raises(PromptError, match=next(iter(wrong))):
        Request("a", (1,), GREEDY, **wrong)


def test_memory_is_told_beside_its_ceiling() -> None:
    stats = Engine(FakeDecoder(), slots=2, memory_ceiling_bytes=2**30).stats
    assert 2**20 < stats.resident_bytes < 2**36
    assert stats.ceiling_bytes == 2**30
    assert Engine(FakeDecoder(), slots=2).stats.ceiling_bytes is None
