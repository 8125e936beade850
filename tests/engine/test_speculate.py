"""Drafts: what they are, that the answer is the one without them, and that they stop where they do not pay."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiasst.engine.costs import Costs
from aiasst.engine.engine import Engine
from aiasst.engine.requests import Event, Finished, Request, Sampling
from aiasst.engine.sampling import sample
from aiasst.engine.speculate import NGRAMS, REACH, SIZES, Lookup, Speculator
from tests.engine.fakes import VOCABULARY, Copier, Drawn, FakeDecoder
from tests.engine.test_engine import SAMPLING, collect, run

IDS = st.lists(st.integers(0, 2), min_size=1, max_size=40)


def still() -> float:
    """A clock on which nothing takes time, so that every draft promises to pay."""
    return 0.0


def free(sizes: Sequence[int] = (1, *SIZES)) -> Costs:
    """Costs of a session whose runs all take a second, whatever their size."""
    costs = Costs()
    for size in sizes * 2:
        costs.verified(size, 1.0)
    return costs


@given(pieces=st.lists(IDS, min_size=1, max_size=12), count=st.integers(0, 20))
def test_a_prediction_is_what_stood_behind_the_last_tokens_before(pieces: list[list[int]], count: int) -> None:
    lookup = Lookup()
    for piece in pieces:
        lookup.extend(piece)
    ids = [token for piece in pieces for token in piece]
    assert len(lookup) == len(ids)
    ends = {size: [ids[i : i + size] for i in range(len(ids) - size)] for size in NGRAMS}
    longest = next((size for size in NGRAMS if ids[-size:] in ends[size]), 0)
    if not longest:
        assert lookup.matched == 0
        return
    at, matched = lookup.at, lookup.matched
    assert longest <= matched <= REACH and at < len(ids)
    assert ids[at - matched : at] == ids[len(ids) - matched :]
    whole = ids + lookup.draft(count)
    assert whole[len(ids) :] == whole[at : at + count] and len(whole) == len(ids) + count


def test_a_match_that_goes_on_is_kept_and_else_the_longest_and_newest_counts() -> None:
    lookup = Lookup()
    lookup.extend([1, 2, 3, 4, 5, 6, 7, 9, 3, 4, 5, 6, 8])
    for token in (2, 3, 4, 5, 6):
        lookup.extend([token])
    # 3 4 5 6 stood before 8 more recently, and 2 3 4 5 6 before 7.
    assert (lookup.draft(1), lookup.matched) == ([7], 5)
    other = Lookup()
    other.extend([1, 2, 5, 0, 1, 2, 6, 4, 1, 2])
    assert other.draft(3) == [6, 4, 1]


def test_nothing_is_drafted_before_a_plain_step_was_measured() -> None:
    speculator = Speculator()
    speculator.observe([1, 2, 3, 4] * 6)
    assert speculator.draft(Costs(), 20) == []
    assert speculator.draft(free((1,)), 20) == [1, 2, 3]  # what nobody has measured is tried in small steps
    assert len(speculator.draft(free((1, 4)), 20)) == 15


@given(ids=IDS, more=IDS, room=st.integers(-1, 20))
def test_a_draft_goes_as_far_as_there_is_room(ids: list[int], more: list[int], room: int) -> None:
    speculator = Speculator()
    for piece in (ids, more):
        speculator.observe(piece)
    assert speculator.seen == len(ids) + len(more)
    draft = speculator.draft(free(), room)
    assert len(draft) <= max(room, 0)
    assert not draft or len(draft) + 1 in SIZES


def test_drafts_become_shorter_as_they_cost_more_and_rarer_as_they_fail() -> None:
    costs = Costs()
    for _ in range(2):
        for size in (1, *SIZES):
            costs.verified(size, 1.0 + 0.3 * (size - 1))
    speculator = Speculator()
    speculator.observe([1, 2, 3, 4, 5] * 10)
    assert len(speculator.draft(free(), 20)) == 15 > len(speculator.draft(costs, 20)) > 0
    for token in range(10, 40):
        speculator.observe([1, 2, token])
    speculator.observe([1, 2])
    assert speculator.draft(costs, 20) == []


# ---- the engine with drafts and without


class Rhythm:
    """A guide that allows every third token fewer ids, and ends the answer after `length` tokens."""

    def __init__(self, length: int) -> None:
        self._left = length
        self.allowed = np.ones(VOCABULARY, bool)

    def accept(self, token: int) -> Finished | None:
        assert self.allowed[token]
        self._left -= 1
        self.allowed = np.ones(VOCABULARY, bool)
        self.allowed[token % 5 :: 5] = self._left % 3 != 0
        return None if self._left else "stop"


def told_alone(
    session: FakeDecoder, prompt: tuple[int, ...], sampling: Sampling, stop_ids: tuple[int, ...], length: int | None
) -> list:
    """[tokens, why it ended], computed without engine and cache."""
    tokens, answer = list(prompt), []
    row = Drawn(sampling, np.array(tokens), len(prompt), np.random.default_rng(sampling.seed))
    row.guide = None if length is None else Rhythm(length)
    while True:
        token = int(sample(session.next_logits(tokens)[None], [row])[0])
        if token in stop_ids:
            return [answer, "stop"]
        tokens.append(token)
        answer.append(token)
        row.tokens = np.array(tokens)
        if row.guide is not None and row.guide.accept(token):
            return [answer, "stop"]
        if len(answer) == sampling.max_tokens or len(tokens) == session.context_length:
            return [answer, "length"]


JOB = st.tuples(
    st.lists(st.integers(0, 3), min_size=1, max_size=30).map(tuple), SAMPLING, st.none() | st.integers(1, 30)
)


@settings(max_examples=150)
@given(
    jobs=st.lists(st.tuples(JOB, st.integers(1, 40), st.integers(0, 60)), min_size=1, max_size=5),
    slots=st.integers(1, 3),
    cancelled=st.sets(st.integers(0, 5), max_size=2),
)
def test_the_answers_are_those_without_drafts(jobs: list, slots: int, cancelled: set[int]) -> None:
    session = Copier()
    engine = Engine(session, slots=slots, chunk=8, clock=still, speculate=True)
    answers: dict[str, list] = {}
    wanted = {}
    for index, ((prompt, setting, guided), length, _) in enumerate(jobs):
        sampling = Sampling(**{**vars(setting), "max_tokens": length})
        wanted[str(index)] = (prompt, sampling, guided)
    now = 0
    while engine.busy or now <= 60:
        for index, (_, _, arrival) in enumerate(jobs):
            if arrival == now:
                prompt, sampling, guided = wanted[str(index)]
                guide = None if guided is None else Rhythm(guided)
                engine.submit(Request(str(index), prompt, sampling, (7, 8), guide))
        if now in cancelled:
            engine.cancel("0")
        collect(engine.step(), answers)
        now += 1
        assert now < 2000
    for name, (prompt, sampling, guided) in wanted.items():
        tokens, finished = told_alone(session, prompt, sampling, (7, 8), guided)
        if name in answers and answers[name][1] == "cancelled":
            assert answers[name][0] == tokens[: len(answers[name][0])]
        else:
            assert answers[name] == [tokens, finished]


@settings(max_examples=60)
@given(
    prompt=st.lists(st.integers(0, 3), min_size=1, max_size=30),
    length=st.integers(1, 60),
    seed=st.integers(0, 9),
)
def test_no_run_goes_beyond_the_limit_and_the_cache_holds_what_was_said(prompt: list, length: int, seed: int) -> None:
    lengths: list[int] = []

    class Watched(Copier):
        def step(self, ids: np.ndarray, now: Sequence[int], *arguments: object, **named: object) -> np.ndarray:
            lengths.extend(now)
            return super().step(ids, now, *arguments, **named)

    session = Watched()
    engine = Engine(session, slots=1, clock=still, speculate=True)
    sampling = Sampling(max_tokens=length, temperature=0.8, seed=seed)
    engine.submit(Request("a", tuple(prompt), sampling))
    answer = run(engine)["a"][0]
    assert max(lengths) < min(len(prompt) + length, session.context_length) or len(answer) == 1
    longer = (*prompt, *answer, 1)[: session.context_length - 1]
    engine.submit(Request("b", longer, Sampling(max_tokens=3, temperature=0)))
    assert run(engine)["b"] == told_alone(session, longer, Sampling(max_tokens=3, temperature=0), (), None)
    assert engine.stats.cached_tokens >= min(len(prompt) + len(answer), len(longer)) - 1


def test_drafts_save_steps_and_are_counted() -> None:
    session = Copier(context_length=256)
    engine = Engine(session, slots=2, clock=still, speculate=True)
    plain = Engine(Copier(context_length=256), slots=2, clock=still)
    request = Request("a", (1, 2, 3, 4, 5, 6, 7, 1, 2), Sampling(max_tokens=120, temperature=0, logprobs=2))
    events: dict[str, list[Event]] = {}
    for name, tried in (("drafts", engine), ("plain", plain)):
        tried.submit(request)
        events[name] = [event for _ in iter(lambda t=tried: t.busy, False) for event in tried.step()]
    told = {n: [(e.token, e.finished, e.chances) for e in found] for n, found in events.items()}
    assert told["drafts"] == told["plain"]
    assert engine.stats.steps < plain.stats.steps / 3
    assert engine.stats.accepted_tokens > 60
    assert engine.stats.drafted_tokens >= engine.stats.accepted_tokens
    assert engine.stats.decoded_tokens == plain.stats.decoded_tokens
    assert plain.stats.drafted_tokens == 0


def test_two_answers_under_way_get_no_drafts_and_the_last_one_does() -> None:
    session = Copier(context_length=256)
    engine = Engine(session, slots=2, clock=still, speculate=True)
    engine.submit(Request("long", (1, 2, 3, 4, 5, 6) * 3, Sampling(max_tokens=100, temperature=0)))
    engine.submit(Request("short", (6, 5, 4) * 4, Sampling(max_tokens=30, temperature=0)))
    answers = run(engine)
    assert answers["long"][0] == told_alone(session, (1, 2, 3, 4, 5, 6) * 3, Sampling(100, 0), (), None)[0]
    together = [at for at, (rows, _) in enumerate(session.shapes) if rows == 2]
    drafted = [at for at, (_, new) in enumerate(session.shapes) if new in SIZES and at > together[0]]
    assert drafted and min(drafted) > max(together)


def test_a_failed_run_over_a_draft_leaves_the_answer_as_it_was() -> None:
    class Flaky(Copier):
        failures = 0

        def step(self, ids: np.ndarray, *arguments: object, **named: object) -> np.ndarray:
            logits = super().step(ids, *arguments, **named)
            if ids.shape[1] == 16 and self.failures < 2:
                self.failures += 1
                raise MemoryError
            return logits

    session = Flaky(context_length=128)
    engine = Engine(session, slots=1, clock=still, speculate=True)
    sampling = Sampling(max_tokens=90, temperature=0)
    engine.submit(Request("a", (1, 2, 3), sampling))
    answers: dict[str, list] = {}
    while engine.busy:
        try:
            collect(engine.step(), answers)
        except MemoryError:
            continue
    assert session.failures == 2
    assert answers["a"] == told_alone(session, (1, 2, 3), sampling, (), None)


# ---- when it pays


class Timed(Copier):
    """Says a script, on a clock of its own: a run over n tokens takes 1 + `slope` * (n - 1)."""

    def __init__(self, script: Sequence[int], slope: float) -> None:
        super().__init__(context_length=1024)
        self.script, self.slope, self.now = script, slope, 0.0

    def step(self, ids: np.ndarray, *arguments: object, **named: object) -> np.ndarray:
        self.now += 1 + self.slope * (ids.shape[1] - 1)
        return super().step(ids, *arguments, **named)

    def next_logits(self, tokens: Sequence[int]) -> np.ndarray:
        return np.eye(VOCABULARY, dtype=np.float32)[self.script[len(tokens)]]


def seconds(script: Sequence[int], prompt: int, slope: float, *, speculate: bool) -> float:
    """Of the answer that says `script` behind its first `prompt` tokens."""
    session = Timed(script, slope)
    engine = Engine(session, slots=1, clock=lambda: session.now, speculate=speculate)
    length = len(script) - prompt
    engine.submit(Request("a", tuple(script[:prompt]), Sampling(max_tokens=length, temperature=0)))
    engine.step()
    session.now = 0.0
    assert run(engine)["a"] == [list(script[prompt + 1 :]), "length"]
    return session.now


def text(length: int, seed: int, vocabulary: int = VOCABULARY) -> list[int]:
    return np.random.default_rng(seed).integers(0, vocabulary, length).tolist()


@pytest.mark.parametrize("slope,gain", [(0.0, 6), (0.1, 3), (0.3, 1.5)])
def test_a_copy_is_faster_by_what_its_runs_cost(slope: float, gain: float) -> None:
    script = [*(source := text(120, 1)), *text(5, 2), *source]
    assert seconds(script, 125, slope, speculate=False) > gain * seconds(script, 125, slope, speculate=True)


@pytest.mark.parametrize("slope", [0.02, 0.1, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("vocabulary", [2, 3, 5, 50])
def test_where_drafts_fail_or_cost_too_much_hardly_anything_is_lost(slope: float, vocabulary: int) -> None:
    """Random texts of few words repeat their n-grams all the time, and what follows is another each time."""
    script = text(450, 3, vocabulary)
    plain, drafts = (seconds(script, 150, slope, speculate=on) for on in (False, True))
    assert drafts < plain / 0.97


def test_a_copy_whose_runs_cost_what_their_tokens_do_is_left_alone() -> None:
    script = [*(source := text(150, 1)), *source]
    plain, drafts = (seconds(script, 150, 1.0, speculate=on) for on in (False, True))
    assert drafts < plain / 0.97


def test_a_machine_that_has_become_slower_for_drafts_is_found_out() -> None:
    script = [*(source := text(300, 1)), *source]
    session = Timed(script, 0.05)
    engine = Engine(session, slots=1, clock=lambda: session.now, speculate=True)
    engine.submit(Request("a", tuple(script[:300]), Sampling(max_tokens=300, temperature=0)))
    events: list[Event] = []
    while len(events) < 100:
        events += engine.step()
    session.slope, at = 3.0, len(session.shapes)
    while engine.busy:
        events += engine.step()
    assert [event.token for event in events] == script[300:]
    later = [new for _, new in session.shapes[at:]]
    assert sum(new > 1 for new in later) < 15 and set(later[-30:]) == {1}
