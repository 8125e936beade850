"""Several models as one service: loaded, shared, unloaded, broken; requests that end before their time."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Coroutine
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from aiasst.artifacts.model_folder import WEIGHTS_NAME, ModelFolder
from aiasst.engine.requests import Sampling
from aiasst.engine.text import TextEngine, TextEvent, TextRequest
from aiasst.errors import ResourceError, UsageError
from aiasst.profile import quick_config
from aiasst.serve.models.hub import Hub, Served
from aiasst.serve.models.loading import needs_of
from aiasst.serve.refusals import Refusal
from aiasst.serve.service import Caller, State
from aiasst.serve.settings import Limits

ME = Caller("me")
GREEDY = Sampling(max_tokens=8, temperature=0)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(240):
            return await work

    return asyncio.run(bounded())


@asynccontextmanager
async def hub(*folders: Path, names: tuple[str, ...] = (), **options: Any) -> Any:
    called = names or tuple(folder.name for folder in folders)
    served = [Served(name, ModelFolder.open(folder)) for name, folder in zip(called, folders, strict=True)]
    made = Hub(served, speculate=False, **options)
    made.start()
    try:
        yield made
    finally:
        await made.abort()


def ask(prompt: str | tuple[int, ...] = "Once upon a time", **changes: Any) -> TextRequest:
    return TextRequest(**{"id": "a", "prompt": prompt, "messages": None, "sampling": GREEDY} | changes)


async def answer(made: Hub, model: str = "", request: TextRequest | None = None) -> list[TextEvent]:
    async with aclosing(made.generate(model, request or ask(), ME)) as events:
        return [event async for event in events]


def text_of(events: list[TextEvent]) -> str:
    return "".join(event.text for event in events)


def state(made: Hub, name: str) -> State:
    return made.model(name).state


async def until(holds: Any) -> None:
    while not holds():
        await asyncio.sleep(0.005)


def test_a_model_is_loaded_by_its_first_request_and_answers_as_its_engine_does(tiny: Path) -> None:
    folder = ModelFolder.open(tiny)
    engine = TextEngine(folder, quick_config(folder), speculate=False)
    prompts = ["the then", "another", "in the end", "one more"]
    wanted = [text_of(list(engine.generate(ask(prompt)))) for prompt in prompts]

    async def work() -> None:
        async with hub(tiny) as made:
            assert state(made, "tiny") == "unloaded" and made.ready
            # All at once: in fp32 company changes nothing.
            found = await asyncio.gather(*(answer(made, "tiny", ask(prompt)) for prompt in prompts))
            assert [text_of(events) for events in found] == wanted
            assert state(made, "tiny") == "ready"
            assert found[0][0] == TextEvent("a", "", None, None)
            assert found[0][-1].finished == "length" and found[0][-1].usage.completion_tokens == 8
            told = made.model("tiny")
            assert (told.running, told.waiting) == (0, 0) and told.stats.steps > 0

    run(work())


def test_who_leaves_frees_the_engine_within_a_step(story: Path) -> None:
    async def work() -> None:
        async with hub(story) as made:
            endless = ask(sampling=Sampling(max_tokens=900, temperature=0, logit_bias={0: -100}))
            events = made.generate("", endless, ME)
            async for event in events:
                if event.text:
                    break
            worker = made._models[story.name].worker
            assert worker is not None and worker._engine.busy
            before = worker._engine.engine.stats.steps
            await events.aclose()
            await until(lambda: not worker._engine.busy)
            # One that was under way, and one that tells the end.
            assert worker._engine.engine.stats.steps - before <= 3
            assert made.model("").running == 0
            # A task that is cancelled while it waits ends just so.
            task = asyncio.create_task(answer(made, request=endless))
            await until(lambda: worker._engine.busy)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await until(lambda: not worker._engine.busy)
            assert text_of(await answer(made))

    run(work())


def test_one_folder_twice_is_in_memory_once(tiny: Path) -> None:
    async def work() -> None:
        async with hub(tiny, tiny, names=("one", "other")) as made:
            await asyncio.gather(answer(made, "one"), answer(made, "other"))
            first, second = (made._models[name].worker._engine.engine._session for name in ("one", "other"))
            assert first is not second and first.graph is second.graph

    run(work())


def test_a_flipped_byte_is_found_at_the_load_and_others_go_on(story: Path, tiny: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(story, broken)
    data = bytearray((broken / WEIGHTS_NAME).read_bytes())
    data[len(data) // 2] ^= 1
    (broken / WEIGHTS_NAME).write_bytes(data)

    async def work() -> None:
        async with hub(broken, tiny) as made:
            with pytest.raises(Refusal, match=WEIGHTS_NAME) as refused:
                await answer(made, "broken")
            assert refused.value.reason == "model_unavailable" and refused.value.retry_after is not None
            assert state(made, "broken") == "failed" and WEIGHTS_NAME in made.model("broken").problem
            assert not made.ready
            assert text_of(await answer(made, "tiny"))
            # Once it is mended the model comes back.
            shutil.copy(story / WEIGHTS_NAME, broken / WEIGHTS_NAME)
            made._models["broken"].failed_at -= 100
            assert text_of(await answer(made, "broken")) and state(made, "broken") == "ready"

    run(work())


def test_models_that_do_not_fit_together_take_turns(story: Path, tmp_path: Path) -> None:
    second = tmp_path / "second"
    shutil.copytree(story, second)
    config = quick_config(ModelFolder.open(story))
    least = needs_of(ModelFolder.open(story), config).least

    async def work() -> None:
        together = {"memory_bytes": int(least * 1.5), "config": config, "limits": Limits(idle_unload_seconds=0)}
        async with hub(story, second, **together) as made:
            first = text_of(await answer(made, story.name))
            assert text_of(await answer(made, "second")) == first
            assert (state(made, story.name), state(made, "second")) == ("unloaded", "ready")
            # One that is being asked is not unloaded: the other waits for it.
            events = made.generate("second", ask(sampling=Sampling(max_tokens=60, logit_bias={0: -100})), ME)
            await anext(events)
            other = asyncio.create_task(answer(made, story.name))
            await asyncio.sleep(0.2)
            assert not other.done() and state(made, "second") == "ready"
            await events.aclose()
            assert text_of(await other) == first
            held = sum(model.held for model in made._models.values())
            assert 0 < held <= made.memory_bytes
        async with hub(story, memory_bytes=least // 2, config=config) as made:
            with pytest.raises(Refusal, match="all models together may take") as refused:
                await answer(made)
            assert "--memory" in refused.value.hint
            assert refused.value.reason == "model_unavailable"

    run(work())


def test_a_step_that_fails_ends_its_requests_and_marks_the_model(story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with hub(story) as made:
            endless = ask(sampling=Sampling(max_tokens=500, logit_bias={0: -100}))
            tasks = [asyncio.create_task(answer(made, request=endless)) for _ in range(3)]
            await until(lambda: made.model("").stats is not None and made.model("").stats.steps > 3)
            engine = made._models[story.name].worker._engine.engine

            def broken(*arguments: object, **options: object) -> None:
                raise ResourceError("memory is short", "free some")

            monkeypatch.setattr(engine._session, "step", broken)
            for task in tasks:
                with pytest.raises(Refusal, match="memory is short") as refused:
                    await task
                assert refused.value.reason == "model_unavailable"
            assert state(made, story.name) == "failed"
            with pytest.raises(Refusal, match="cannot be used"):
                await answer(made)
            made._models[story.name].failed_at -= 100
            assert text_of(await answer(made))

    run(work())


def test_deadlines_count_the_wait_and_the_engine(story: Path) -> None:
    async def work() -> None:
        async with hub(story, limits=Limits(most_running=1, deadline_seconds=0.3)) as made:
            await answer(made)
            endless = ask(sampling=Sampling(max_tokens=900, logit_bias={0: -100}), deadline_seconds=1.5)
            first = asyncio.create_task(answer(made, request=endless))
            await until(lambda: made.model("").running == 1)
            with pytest.raises(Refusal) as refused:
                await answer(made)  # 0.3 seconds, as the service says for those that name none
            assert refused.value.reason == "deadline"
            assert (await first)[-1].finished in ("deadline", "length")

    run(work())


def test_a_stop_lets_requests_end_refuses_others_and_tells_the_rest(story: Path) -> None:
    async def work(seconds: float, tokens: int) -> Any:
        async with hub(story, limits=Limits(stop_seconds=seconds)) as made:
            asked = ask(sampling=Sampling(max_tokens=tokens, logit_bias={0: -100}))
            task = asyncio.create_task(answer(made, request=asked))
            await until(lambda: made.model("").stats is not None and made.model("").running == 1)
            stopping = asyncio.create_task(made.stop())
            await asyncio.sleep(0)
            assert not made.accepting and not made.ready
            with pytest.raises(Refusal) as refused:
                await answer(made)
            assert (refused.value.reason, refused.value.status) == ("stopping", 503)
            await stopping
            return (await asyncio.gather(task, return_exceptions=True))[0]

    assert run(work(120, 30))[-1].finished == "length"
    told = run(work(0.0, 900))
    assert isinstance(told, Refusal) and told.reason == "stopping"


def test_vectors_of_many_requests_at_once(bert: Path) -> None:
    async def work() -> None:
        async with hub(bert) as made:
            texts = [f"text number {index}" for index in range(70)]
            together = await made.embed("bert", texts, ME)
            apart = await asyncio.gather(*(made.embed("bert", [text], ME) for text in texts))
            assert together.values.shape[0] == 70
            assert together.tokens == sum(each.tokens for each in apart)
            for row, each in zip(together.values, apart, strict=True):
                assert abs(row - each.values[0]).max() < 1e-5
            with pytest.raises(Refusal, match="generates no text"):
                await answer(made)
            task = asyncio.create_task(made.embed("bert", texts * 20, ME))
            await asyncio.sleep(0.05)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert (await made.embed("bert", ["a"], ME)).values.shape[0] == 1

    run(work())


def test_names_are_needed_and_known(story: Path) -> None:
    with pytest.raises(UsageError, match="two models are called"):
        Hub([Served("a", ModelFolder.open(story))] * 2)
    with pytest.raises(UsageError, match="no model"):
        Hub([])

    async def work() -> None:
        async with hub(story) as made:
            with pytest.raises(Refusal, match="no model") as refused:
                made.model("gpt")
            assert (refused.value.reason, refused.value.parameter) == ("not_found", "model")
            assert story.name in refused.value.hint
            assert made.defaults("").temperature > 0

    run(work())
