"""The line before a model, on clocks and loads of the tests' own: who begins, who waits, who is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiasst.serve.models.admission import Line
from aiasst.serve.models.utilization import Load, Utilization
from aiasst.serve.refusals import Refusal
from aiasst.serve.settings import Limits


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def run(work: Coroutine[Any, Any, Any]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(60):
            return await work

    return asyncio.run(bounded())


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_the_line_is_bounded_and_says_when_to_come_again() -> None:
    async def work() -> None:
        clock = Clock()
        line = Line(Limits(most_running=2, most_waiting=1), clock=clock)
        for _ in range(20):
            async with line.turn():
                clock.now += 6  # seconds that a request takes
        async with AsyncExitStack() as under_way:
            await under_way.enter_async_context(line.turn())
            await under_way.enter_async_context(line.turn())
            third = asyncio.create_task(under_way.enter_async_context(line.turn()))
            await settle()
            assert (line.running, line.waiting, line.full) == (2, 1, True)
            with pytest.raises(Refusal, match="2 requests are under way and 1 wait") as refused:
                await under_way.enter_async_context(line.turn())
            # Two before it and two at once, six seconds each.
            assert (refused.value.reason, refused.value.status, refused.value.retry_after) == ("queue_full", 429, 6)
            third.cancel()
        await settle()
        assert (line.running, line.waiting) == (0, 0)

    run(work())


def test_who_is_more_urgent_begins_first_and_nobody_waits_for_ever() -> None:
    async def work() -> list[str]:
        clock, begun = Clock(), []
        line = Line(Limits(most_running=1), clock=clock)

        async def ask(name: str, priority: int) -> None:
            async with line.turn(priority=priority):
                begun.append(name)

        async with line.turn():
            tasks = []
            # Ten levels are worth a hundred seconds.
            for name, priority, arrives in (("first", 0, 0), ("urgent", 10, 50), ("late", 10, 101), ("low", -10, 0)):
                clock.now = arrives
                tasks.append(asyncio.create_task(ask(name, priority)))
                await settle()
        await asyncio.gather(*tasks)
        return begun

    assert run(work()) == ["urgent", "first", "late", "low"]


def test_patience_ends_and_leaves_the_line() -> None:
    async def work() -> None:
        line = Line(Limits(most_running=1))
        async with line.turn():
            with pytest.raises(Refusal) as refused:
                async with line.turn(patience=0.01):
                    raise AssertionError("it began")
            assert (refused.value.reason, refused.value.status) == ("deadline", 504)
            assert line.waiting == 0
        assert line.running == 0

    run(work())


def test_a_busy_machine_holds_work_back_and_never_an_idle_service() -> None:
    async def work() -> None:
        load = Load(cpu=1, memory=1, waiting_for_disk=0.9)
        utilization = Utilization(lambda: load)
        assert utilization.sample() == pytest.approx(0.3 + 0.2 + 0.45)
        line = Line(Limits(most_running=8), crowded=lambda: utilization.value() > 0.85)
        assert not line.would_wait
        async with line.turn():
            assert line.would_wait
            held = asyncio.create_task(_brief(line))
            await settle()
            assert line.waiting == 1
            load = Load(cpu=1, memory=0.5)
            assert utilization.sample() == pytest.approx(0.4)
            line.look_again()
            await held
        # As long as the others go on, one by one.
        load = Load(cpu=1, memory=1, waiting_for_disk=1)
        utilization.sample()
        await asyncio.gather(*(_brief(line) for _ in range(5)))
        assert (line.running, line.waiting) == (0, 0)

    run(work())


async def _brief(line: Line) -> None:
    async with line.turn():
        await asyncio.sleep(0)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(-10, 10), st.sampled_from(["stay", "leave", "late"]), st.integers(0, 3)), max_size=25
    ),
    st.integers(1, 4),
    st.integers(0, 6),
)
def test_whatever_requests_do_places_are_given_back_and_limits_kept(
    requests: list[tuple[int, str, int]], most_running: int, most_waiting: int
) -> None:
    async def work() -> None:
        line = Line(Limits(most_running=most_running, most_waiting=most_waiting))
        most = served = 0

        async def ask(priority: int, pause: int) -> None:
            nonlocal most, served
            try:
                async with line.turn(priority=priority):
                    most = max(most, line.running)
                    for _ in range(pause):
                        await asyncio.sleep(0)
                    served += 1
            except Refusal as refusal:
                assert refusal.reason == "queue_full"

        tasks = []
        for priority, how, pause in requests:
            task = asyncio.create_task(ask(priority, pause))
            tasks.append(task)
            if how == "late":
                await asyncio.sleep(0)
            if how != "stay":
                task.cancel()
            assert line.waiting <= most_waiting
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (line.running, line.waiting) == (0, 0) and most <= most_running
        assert served >= min(most_running, sum(how == "stay" for _, how, _ in requests))

    run(work())
