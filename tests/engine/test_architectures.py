"""Converted checkpoints in the engine: ragged requests together as alone, for each kind of attention and position."""

from __future__ import annotations

import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aiasst.artifacts.device import (
    CoresDecision,
    Costs,
    CountDecision,
    Decisions,
    DeviceConfig,
    Hardware,
    TextDecision,
)
from aiasst.artifacts.model_folder import ModelFolder
from aiasst.engine.engine import Engine
from aiasst.engine.requests import Request, Sampling
from aiasst.engine.scheduler import INTER_TOKEN_LATENCY, Scheduler
from aiasst.engine.text import TextEngine, TextRequest
from aiasst.errors import ArtifactError, ResourceError
from aiasst.runtime.session import DecoderSession, SessionSettings
from aiasst.tokenizer import Message
from tests import checkpoints

RANDOM = np.random.default_rng(3)
PROMPTS = [tuple(RANDOM.integers(4, checkpoints.VOCABULARY, length).tolist()) for length in (40, 3, 21, 1, 33)]
SAMPLINGS = [Sampling(max_tokens=count, temperature=0.9, top_p=0.95, seed=count) for count in (6, 25, 12, 30, 4)]


def converted(name: str, folder: Path, **options: bool) -> ModelFolder:
    pytest.importorskip("torch")
    from aiasst.convert import convert

    return convert(checkpoints.build(name, folder / "checkpoint", **options), folder / "model")


@pytest.fixture(scope="module", params=checkpoints.DECODERS)
def session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DecoderSession:
    folder = converted(request.param, tmp_path_factory.mktemp(request.param))
    return DecoderSession.open(folder, SessionSettings(threads=1))


def answers(session: DecoderSession, jobs: range, slots: int, chunk: int) -> dict[int, list[int]]:
    engine = Engine(session, slots=slots, chunk=chunk)
    for job in jobs:
        engine.submit(Request(str(job), PROMPTS[job], SAMPLINGS[job]))
    got: dict[int, list[int]] = {job: [] for job in jobs}
    while engine.busy:
        for event in engine.step():
            if event.token is not None:
                got[int(event.request_id)].append(event.token)
    return got


def test_together_in_chunks_as_alone_in_one_run(session: DecoderSession) -> None:
    together = answers(session, range(5), slots=3, chunk=8)
    for job in range(5):
        assert answers(session, range(job, job + 1), slots=1, chunk=256)[job] == together[job]
        assert len(together[job]) == SAMPLINGS[job].max_tokens


def test_all_logits_are_those_of_each_prefix(session: DecoderSession) -> None:
    def cache() -> list[np.ndarray]:
        shape = (1, session.kv_heads, 64, session.head_dim)
        return [np.full(shape, np.nan, session.cache_dtype) for _ in range(2 * session.layers)]

    prompt = np.array([PROMPTS[0]])
    every = session.step(prompt, [40], cache(), all_logits=True)[0]
    assert every.shape == (40, checkpoints.VOCABULARY)
    for length in (1, 17, 40):
        last = session.step(prompt[:, :length], [length], cache())[0]
        np.testing.assert_allclose(last, every[length - 1], atol=1e-4)


def device_config(slots: int, ceiling: int) -> DeviceConfig:
    hardware = Hardware(
        machine_id="test", system="test", architecture="test", cpu_model="test", physical_cores=1, logical_cores=1,
        usable_cores=1, instruction_sets=(), caches=(), memory_total_bytes=1, memory_limit_bytes=1,
        memory_free_bytes=1,
    )  # fmt: skip
    decisions = Decisions(
        provider=TextDecision(value="cpu", reason="test"),
        threads=CountDecision(value=1, reason="test"),
        affinity=CoresDecision(value=None, reason="test"),
        slots=CountDecision(value=slots, reason="test"),
        memory_ceiling_bytes=CountDecision(value=ceiling, reason="test"),
    )
    return DeviceConfig(
        aiasst_version="0", onnxruntime_version="0", created="", hardware=hardware, costs=Costs(), decisions=decisions
    )


def test_a_folder_answers_messages_under_a_device_config(tmp_path: Path) -> None:
    folder = converted("llama_tied", tmp_path, chat_template=True)
    engine = TextEngine(folder, device_config(slots=4, ceiling=2**26))
    assert (engine.free_slots, engine.context_length) == (4, 256)
    ask = TextRequest("a", None, (Message("user", "the then"),), Sampling(max_tokens=7, temperature=0))
    events = list(engine.generate(ask))
    usage = events[-1].usage
    assert usage is not None and usage.prompt_tokens == len(engine.encode(ask))
    assert events[-1].finished == "stop" or usage.completion_tokens == 7
    with pytest.raises(ResourceError, match="memory ceiling is"):
        TextEngine(folder, device_config(slots=4, ceiling=1000))


def test_a_prompt_delays_answers_as_long_as_the_device_config_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    made = Scheduler.__init__

    def watched(self: Scheduler, slots: int, chunk: int, **settings: Any) -> None:
        seen.append(settings["inter_token_latency"])
        made(self, slots, chunk, **settings)

    monkeypatch.setattr(Scheduler, "__init__", watched)
    folder, config = converted("llama_tied", tmp_path, chat_template=True), device_config(slots=4, ceiling=2**26)
    TextEngine(folder, config)
    wanted = CountDecision(value=40, reason="test")
    decisions = config.decisions.model_copy(update={"inter_token_latency_ms": wanted})
    TextEngine(folder, config.model_copy(update={"decisions": decisions}))
    assert seen == [INTER_TOKEN_LATENCY, 0.04]


def test_engines_of_one_folder_share_its_weights_and_nothing_else(tmp_path: Path) -> None:
    """Two of them answer side by side, each as it does alone; the weights go when the last one does."""
    folder = converted("llama_tied", tmp_path)
    settings = SessionSettings(threads=1)
    first, second = (DecoderSession.open(ModelFolder.open(folder.path), settings) for _ in range(2))
    assert first.graph is second.graph
    assert DecoderSession.open(folder, SessionSettings(threads=2)).graph is not first.graph
    alone = answers(first, range(5), slots=3, chunk=16)
    found: dict[int, dict[int, list[int]]] = {}

    def work(number: int, session: DecoderSession) -> None:
        found[number] = answers(session, range(5), slots=3, chunk=16)

    threads = [threading.Thread(target=work, args=pair) for pair in enumerate((first, second))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: alone, 1: alone}
    graph = weakref.ref(first.graph)
    del first, second
    threads.clear()
    gc.collect()
    assert graph() is None


def test_an_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no causal decoder"):
        DecoderSession.open(converted("bert", tmp_path), SessionSettings(threads=1))
