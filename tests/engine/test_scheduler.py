"""The scheduler, driven without arrays: laws over random loads."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiasst.engine.scheduler import Decode, Prefill, Scheduler, Swap

# (prompt length, answer length, arrives at step, leaves early at step or never)
JOB = st.tuples(st.integers(1, 40), st.integers(1, 12), st.integers(0, 30), st.none() | st.integers(0, 60))


class Driver:
    """Executes what the scheduler says on a list of rows, and checks its promises on the way."""

    def __init__(self, slots: int, chunk: int) -> None:
        self.scheduler = Scheduler(slots, chunk)
        self.rows: list[str | None] = [None] * slots
        self.chunk = chunk
        self.answers: dict[str, int] = {}
        self.read: dict[str, int] = {}
        self.begun: list[str] = []

    def swap(self, swap: Swap | None) -> None:
        if swap:
            self.rows[swap.first], self.rows[swap.second] = self.rows[swap.second], self.rows[swap.first]

    def step(self) -> str:
        if (head := self.scheduler.next_in_line) is not None and self.scheduler.free_rows:
            row = self.scheduler.free_rows[-1]
            self.scheduler.admit(row, 0)
            self.rows[row] = head
            self.begun.append(head)
        work = self.scheduler.next()
        if isinstance(work, Prefill):
            assert self.rows[work.row] == work.request_id
            assert work.start == self.read.get(work.request_id, 0)
            assert 1 <= work.count <= self.chunk
            self.read[work.request_id] = work.start + work.count
            self.swap(self.scheduler.prefilled(work.count))
            if work.last:
                self.answers[work.request_id] = 1
            return "prefill"
        if isinstance(work, Decode):
            assert tuple(self.rows[: len(work.request_ids)]) == work.request_ids  # contiguous from row 0
            for request_id in work.request_ids:
                self.answers[request_id] += 1
            return "decode"
        return "nothing"

    def leave(self, request_id: str) -> None:
        self.swap(self.scheduler.leave(request_id))


@settings(max_examples=300, deadline=None)
@given(jobs=st.lists(JOB, min_size=1, max_size=12), slots=st.integers(1, 5), chunk=st.integers(1, 16))
def test_every_request_finishes_once_in_order_and_rows_stay_contiguous(
    jobs: list[tuple[int, int, int, int | None]], slots: int, chunk: int
) -> None:
    driver = Driver(slots, chunk)
    finished: list[str] = []
    submitted: list[str] = []
    cancelled: set[str] = set()
    now = 0
    while len(finished) < len(jobs):
        for index, (prompt, _, arrival, _) in enumerate(jobs):
            if arrival == now:
                driver.scheduler.submit(str(index), prompt)
                submitted.append(str(index))
        for index, (_, _, arrival, leaves) in enumerate(jobs):
            name = str(index)
            if leaves is not None and leaves == now and arrival <= now and name not in finished:
                driver.leave(name)
                finished.append(name)
                cancelled.add(name)
        did = driver.step()
        assert did != "nothing" or not driver.scheduler.busy  # work conserving: never idle while somebody waits
        for name in reversed(driver.scheduler.decoding):
            if driver.answers[name] >= jobs[int(name)][1]:
                driver.leave(name)
                finished.append(name)
        now += 1
        assert now < 3000, "starved"
    assert sorted(finished) == sorted(str(i) for i in range(len(jobs)))
    assert not driver.scheduler.busy
    assert driver.begun == [name for name in submitted if name in driver.begun]  # first come, first served
    for name, (prompt, answer, _, _) in ((str(i), job) for i, job in enumerate(jobs)):
        if name not in cancelled:
            assert driver.read[name] == prompt
            assert driver.answers[name] == answer or answer == 1


@given(prompt=st.integers(20, 200), chunk=st.integers(1, 16))
def test_a_long_prompt_delays_the_others_by_one_chunk_a_token(prompt: int, chunk: int) -> None:
    driver = Driver(3, chunk)
    driver.scheduler.submit("a", 1)
    driver.step()
    driver.scheduler.submit("long", prompt)
    history = []
    while "long" not in driver.scheduler.decoding:
        history.append(driver.step())
    assert all(not (a == b == "prefill") for a, b in itertools.pairwise(history))
    assert history.count("prefill") == -(-prompt // chunk)


def test_the_last_row_moves_into_the_hole() -> None:
    driver = Driver(3, 8)
    for name in "abc":
        driver.scheduler.submit(name, 4)
    while len(driver.scheduler.decoding) < 3:
        driver.step()
    first, _, last = driver.scheduler.decoding
    assert driver.scheduler.leave(first) == Swap(0, 2)
    assert driver.scheduler.decoding[0] == last
    assert driver.scheduler.free_rows == (2,)


def test_contradictions_are_refused() -> None:
    scheduler = Scheduler(2, 4)
    with pytest.raises(KeyError):
        scheduler.leave("nobody")
    with pytest.raises(ValueError):
        scheduler.prefilled(1)
    scheduler.submit("a", 3)
    with pytest.raises(ValueError):
        scheduler.admit(0, 3)  # the last token must be computed
    with pytest.raises(ValueError):
        scheduler.admit(2, 0)
    with pytest.raises(ValueError):
        Scheduler(0, 4)
