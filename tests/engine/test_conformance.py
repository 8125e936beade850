"""The engine on a real decoder: answers of ragged requests together are those of each alone, and stale rows are never read."""

from __future__ import annotations

import numpy as np
import pytest

from aiasst.engine.cache import KVCache
from aiasst.engine.engine import Engine
from aiasst.engine.requests import Request, Sampling
from aiasst.runtime.session import DecoderSession, GraphSession, SessionSettings
from tests.runtime.graphs import CONTEXT, VOCABULARY, tiny_decoder

RANDOM = np.random.default_rng(7)
PROMPTS = [tuple(RANDOM.integers(0, VOCABULARY, length).tolist()) for length in (4, 37, 1, 60, 12)]
SAMPLINGS = [
    Sampling(max_tokens=20, temperature=0),
    Sampling(max_tokens=5, temperature=0.8, top_p=0.9, seed=3),
    Sampling(max_tokens=40, temperature=1.2, top_k=8, seed=4),
    Sampling(max_tokens=9, temperature=0, repetition_penalty=1.2),
    Sampling(max_tokens=25, temperature=1, min_p=0.05, seed=5),
]


@pytest.fixture(scope="module", params=[np.float32, np.float16], ids=["fp32", "fp16"])
def session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DecoderSession:
    path = tiny_decoder(tmp_path_factory.mktemp("tiny") / "model.onnx", request.param)
    return DecoderSession(GraphSession.open(path, SessionSettings(threads=1)), context_length=CONTEXT)


@pytest.fixture(autouse=True)
def stale_memory_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """New cache arrays are full of NaN: a row read where nothing was written would show."""
    original = KVCache._new

    def full_of_nan(cache: KVCache, slots: int, capacity: int) -> np.ndarray:
        array = original(cache, slots, capacity)
        array.fill(np.nan)
        return array

    monkeypatch.setattr(KVCache, "_new", full_of_nan)


def answers(session: DecoderSession, jobs: list[int], slots: int) -> dict[int, list[int]]:
    engine = Engine(session, slots=slots, chunk=16)
    for job in jobs:
        engine.submit(Request(str(job), PROMPTS[job], SAMPLINGS[job], (0,)))
    got: dict[int, list[int]] = {job: [] for job in jobs}
    while engine.busy:
        for event in engine.step():
            if event.token is not None:
                got[int(event.request_id)].append(event.token)
    return got


def test_five_ragged_requests_through_three_slots_as_alone(session: DecoderSession) -> None:
    together = answers(session, [0, 1, 2, 3, 4], slots=3)
    for job in range(5):
        assert answers(session, [job], slots=1)[job] == together[job]
    assert len({tuple(tokens) for tokens in together.values()}) == 5


def test_a_reused_beginning_gives_the_same_answer(session: DecoderSession) -> None:
    engine = Engine(session, slots=2, chunk=16)
    system = PROMPTS[3]

    def ask(name: str, prompt: tuple[int, ...]) -> tuple[list[int], int]:
        engine.submit(Request(name, prompt, Sampling(max_tokens=12, temperature=0)))
        events = [event for _ in iter(lambda: engine.busy, False) for event in engine.step()]
        return [event.token for event in events if event.token is not None], events[-1].cached_tokens

    first, cached = ask("first", (*system, 1, 2))
    assert cached == 0
    again, cached = ask("again", (*system, 1, 2))
    assert (again, cached) == (first, len(system) + 1)
    other, cached = ask("other", (*system, 9))
    assert cached == len(system)
    fresh = Engine(session, slots=1)
    fresh.submit(Request("fresh", (*system, 9), Sampling(max_tokens=12, temperature=0)))
    assert [e.token for _ in iter(lambda: fresh.busy, False) for e in fresh.step()] == other


def test_cancelling_frees_the_row_at_every_point(session: DecoderSession) -> None:
    alone = answers(session, [1], slots=1)[1]
    for steps in range(8):
        engine = Engine(session, slots=2, chunk=16)
        engine.submit(Request("long", PROMPTS[3], SAMPLINGS[3]))
        engine.submit(Request("kept", PROMPTS[1], SAMPLINGS[1], (0,)))
        events = [event for _ in range(steps) for event in engine.step()]
        engine.cancel("long")
        assert engine.free_slots == 1
        while engine.busy:
            events += engine.step()
        assert [e.token for e in events if e.request_id == "kept" and e.token is not None] == alone
        assert engine.free_slots == 2


def test_the_cache_grows_without_a_change(session: DecoderSession) -> None:
    engine = Engine(session, slots=2, chunk=16)
    engine._cache.resize(2, 8, [0, 0])  # smaller than any bucket, so that requests make it grow while others run
    engine.submit(Request("0", PROMPTS[0], Sampling(max_tokens=4, temperature=0)))
    engine.step()
    engine.submit(Request("4", PROMPTS[4], SAMPLINGS[4], (0,)))
    got: list[int] = []
    while engine.busy:
        got += [e.token for e in engine.step() if e.request_id == "4" and e.token is not None]
    assert got == answers(session, [4], slots=1)[4]
    assert engine.stats.capacity == CONTEXT


def test_drafts_change_no_answer_and_save_runs(session: DecoderSession) -> None:
    prompt = (*PROMPTS[1], *PROMPTS[1])
    told: list[list[tuple[int | None, str | None]]] = []
    steps: list[int] = []
    for speculate in (False, True):
        engine = Engine(session, slots=1, chunk=16, clock=lambda: 0.0, speculate=speculate)
        for name, sampling in (("a", Sampling(max_tokens=45, temperature=0)), ("b", SAMPLINGS[2])):
            engine.submit(Request(name, prompt, sampling, (0,)))
        events = [event for _ in iter(lambda e=engine: e.busy, False) for event in engine.step()]
        told.append([(event.token, event.finished) for event in events])
        steps.append(engine.stats.steps)
    assert told[0] == told[1]
    assert engine.stats.accepted_tokens > 5
    assert steps[1] < steps[0] - 5
