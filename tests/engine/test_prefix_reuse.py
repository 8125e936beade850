"""The engine with its store: beginnings survive the rows that had them, answers stay what they are, the ceiling holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiasst.engine import prefix_file
from aiasst.engine.engine import Engine
from aiasst.engine.prefix import LEAST, Resident, place
from aiasst.engine.requests import Request, Sampling
from aiasst.engine.text import TextEngine, TextRequest
from aiasst.errors import ArtifactError
from aiasst.runtime.session import DecoderSession, GraphSession, SessionSettings
from tests.engine.fakes import VOCABULARY, FakeDecoder
from tests.engine.test_engine import GREEDY, expected, run
from tests.engine.test_text import STORY, Reciter
from tests.runtime.graphs import CONTEXT, tiny_decoder
from tests.runtime.graphs import VOCABULARY as TINY_VOCABULARY

STEM = tuple(range(1, 31))
PER_TOKEN = 2 * 2 * 1 * 2 * 4
LOGITS = VOCABULARY * 4


def ask(engine: Engine, name: str, prompt: tuple[int, ...], sampling: Sampling = GREEDY) -> tuple[list[int], int]:
    """The answer's tokens, and how many of the prompt's were not computed."""
    engine.submit(Request(name, prompt, sampling))
    events = [event for _ in iter(lambda: engine.busy, False) for event in engine.step()]
    return [event.token for event in events if event.token is not None], events[-1].cached_tokens


def test_a_beginning_survives_the_reuse_of_every_row() -> None:
    engine = Engine(FakeDecoder(), slots=2)
    ask(engine, "first", (*STEM, 40))
    for number in range(4):
        ask(engine, f"other {number}", (number, *range(45, 20, -1)))
    assert engine.stats.prefix_bytes > len(STEM) * PER_TOKEN
    answer, cached = ask(engine, "again", (*STEM, 41))
    assert cached == len(STEM)
    assert answer == expected((*STEM, 41), GREEDY)[0]


def test_a_row_that_loses_a_few_tokens_is_not_worth_storing() -> None:
    engine = Engine(FakeDecoder(), slots=1)
    ask(engine, "first", (*STEM, 40))
    ask(engine, "again", (*STEM, 41))
    assert (engine.stats.prefix_bytes, engine.stats.cached_tokens) == (0, len(STEM))


def test_without_a_budget_nothing_is_stored() -> None:
    engine = Engine(FakeDecoder(), slots=1, prefix_bytes=0)
    for prompt in ((*STEM, 40), (2, *STEM), (*STEM, 41)):
        assert ask(engine, "a", prompt) == (expected(prompt, GREEDY)[0], 0)
    assert engine.stats.prefix_bytes == 0


PROMPT = st.builds(
    lambda stem, cut, rest: (*STEM[stem : stem + cut], *rest),
    st.integers(0, 2), st.integers(0, 28), st.lists(st.integers(0, 3), min_size=1, max_size=20),
)  # fmt: skip


@settings(max_examples=100)
@given(
    jobs=st.lists(st.tuples(PROMPT, st.integers(1, 20), st.integers(0, 30)), min_size=1, max_size=12),
    slots=st.integers(1, 3),
    chunk=st.integers(1, 40),
    room=st.none() | st.integers(64 * PER_TOKEN, 64 * PER_TOKEN * 5),
    prefix_bytes=st.integers(0, 20_000),
)
def test_answers_are_those_computed_alone_and_the_ceiling_holds(
    jobs: list, slots: int, chunk: int, room: int | None, prefix_bytes: int
) -> None:
    ceiling = None if room is None else room + slots * LOGITS
    engine = Engine(FakeDecoder(), slots=slots, chunk=chunk, memory_ceiling_bytes=ceiling, prefix_bytes=prefix_bytes)
    answers: dict[str, list] = {}
    now = 0
    while engine.busy or now <= 30:
        for index, (prompt, tokens, arrival) in enumerate(jobs):
            if arrival == now:
                engine.submit(Request(str(index), prompt, Sampling(max_tokens=tokens, temperature=0)))
        for event in engine.step():
            answer = answers.setdefault(event.request_id, [[], None])
            answer[0] += [] if event.token is None else [event.token]
            answer[1] = event.finished
        stats = engine.stats
        assert stats.prefix_bytes <= prefix_bytes
        assert room is None or stats.cache_bytes + stats.prefix_bytes <= room
        now += 1
    for index, (prompt, tokens, _) in enumerate(jobs):
        assert answers[str(index)] == expected(prompt, Sampling(max_tokens=tokens, temperature=0))
    assert engine.stats.prefill_tokens + engine.stats.cached_tokens == sum(len(prompt) for prompt, _, _ in jobs)


def test_rows_that_go_because_one_must_be_long_are_stored() -> None:
    decoder = FakeDecoder(context_length=1024)
    engine = Engine(decoder, slots=4, memory_ceiling_bytes=4 * LOGITS + 5 * 256 * PER_TOKEN)
    for number in range(4):
        engine.submit(Request(str(number), (number, *STEM), GREEDY))
    run(engine)
    ask(engine, "long", (49, 48) * 250)
    assert engine.stats.slots == 2
    assert [sum(len(piece.tokens) for piece in engine.held((n, *STEM))) for n in range(4)] == [31] * 4
    assert engine.stats.prefix_bytes > 3 * 31 * PER_TOKEN  # the fourth rests in a row
    assert ask(engine, "again", (3, *STEM, 5))[1] == 31


def test_a_row_that_holds_nothing_else_is_filled_from_the_store() -> None:
    residents = [Resident(np.arange(50), 50, 1), Resident(np.arange(100, 120), 20, 2), Resident()]
    prompt = np.arange(100, 180)
    assert place(prompt, residents, [0, 1, 2], stored=40).row == 2
    assert place(prompt, residents, [0, 1], stored=40).row == 1
    assert place(prompt, residents, [0], stored=40).row == 0
    assert place(prompt, residents, [0, 1, 2], stored=40).source is None
    assert place(prompt, residents, [0, 1, 2], stored=20).source == 1


def test_what_requests_share_is_told_apart_from_what_one_goes_on_with() -> None:
    engine = Engine(FakeDecoder(), slots=2)
    first, _ = ask(engine, "first", (*STEM, 40))
    ask(engine, "more", (*STEM, 40, *first, 3))  # goes on with the first
    assert engine.shared() == []
    ask(engine, "other", (*STEM, 41))
    assert [piece.tokens.tolist() for piece in engine.shared()] == [list(STEM)]
    assert engine.prefixes.news == len(STEM)


def test_what_is_held_is_the_longest_of_rows_and_store() -> None:
    engine = Engine(FakeDecoder(), slots=1)
    answer, _ = ask(engine, "first", (*STEM, 40))
    whole = [*STEM, 40, *answer]
    (piece,) = engine.held([*whole, 1, 2])
    assert piece.tokens.tolist() == whole[:-1]
    ask(engine, "other", (*STEM[:20], 9))
    held = np.concatenate([piece.tokens for piece in engine.held([*whole, 1, 2])]).tolist()
    assert held == whole[:-1]
    assert engine.held([9] * 40) == []
    assert engine.held(list(STEM[: LEAST - 1])) == []


# On a real decoder, in float32: not one token differs.


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> DecoderSession:
    path = tiny_decoder(tmp_path_factory.mktemp("tiny") / "model.onnx", np.float32)
    return DecoderSession(GraphSession.open(path, SessionSettings(threads=1)), context_length=CONTEXT)


def prompts() -> Iterator[tuple[int, ...]]:
    random = np.random.default_rng(5)
    stems = [tuple(random.integers(0, TINY_VOCABULARY, 30).tolist()) for _ in range(3)]
    for number in range(9):
        yield (*stems[number % 3], *random.integers(0, TINY_VOCABULARY, 1 + number).tolist())


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_answers_with_and_without_reuse_are_the_same(session: DecoderSession, temperature: float) -> None:
    reusing = Engine(session, slots=1)
    for number, prompt in enumerate(prompts()):
        sampling = Sampling(max_tokens=20, temperature=temperature, seed=number)
        answer, cached = ask(reusing, "a", prompt, sampling)
        assert cached >= (30 if number >= 3 else 0)
        assert answer == ask(Engine(session, slots=1, prefix_bytes=0), "a", prompt, sampling)[0]


def test_answers_from_a_file_are_the_same(session: DecoderSession, tmp_path: Path) -> None:
    engine, path = Engine(session, slots=1), tmp_path / "a.kv"
    first, *others = prompts()
    answer, _ = ask(engine, "a", first)
    whole = (*first, *answer, 3, 1)
    prefix_file.write(path, engine.held(whole), model="m", shape=engine.cache_shape)
    fresh = Engine(session, slots=1)
    fresh.prefixes.load(path, "m")
    continued, cached = ask(fresh, "b", whole)
    assert cached == len(first) + len(answer) - 1
    assert continued == ask(Engine(session, slots=1, prefix_bytes=0), "b", whole)[0]
    for prompt in others:
        ask(engine, "c", prompt)
    prefix_file.write(path, engine.shared(), model="m", shape=engine.cache_shape)
    fresh = Engine(session, slots=1)
    fresh.prefixes.load(path, "m")
    for prompt in others:
        answer, cached = ask(fresh, "d", prompt)
        assert cached == 30
        assert answer == ask(Engine(session, slots=1, prefix_bytes=0), "d", prompt)[0]


# In text.


def test_a_text_engine_saves_and_loads_under_its_models_hash(tmp_path: Path) -> None:
    path = tmp_path / "a.kv"
    begin = "Once upon a time, there was a fox in the wood, and the fox was hungry and cold and very sad"

    def engine(model: str) -> TextEngine:
        return TextEngine.of(STORY, Engine(Reciter(" indeed."), slots=1), model=model)

    def request(name: str, text: str) -> TextRequest:
        return TextRequest(name, text, None, Sampling(max_tokens=4, temperature=0))

    first = engine("m")
    assert first.save_prefix(path, request("a", begin)) == 0
    assert not path.exists()
    list(first.generate(request("a", begin)))
    assert first.save_prefix(path, request("a", begin)) == path.stat().st_size
    second = engine("m")
    tokens = second.load_prefixes(path)
    assert tokens == len(STORY.encode(begin)) > LEAST
    usage = list(second.generate(request("b", begin + " and old.")))[-1].usage
    assert usage is not None and usage.cached_tokens >= tokens - 1
    with pytest.raises(ArtifactError, match="another model"):
        engine("n").load_prefixes(path)
    shared = tmp_path / "shared.kv"
    assert engine("m").save_shared(shared) == 0
    list(first.generate(request("c", begin + " and small.")))
    list(first.generate(request("d", begin + " but young.")))
    assert first.save_shared(shared) == shared.stat().st_size
    assert second.load_prefixes(shared) >= tokens - 1
    assert not [file for file in tmp_path.iterdir() if file not in (path, shared)]
