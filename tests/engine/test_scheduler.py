"""The scheduler, driven without arrays on a clock of its own: laws over random loads."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiasst.engine.costs import LEAST_CHUNK
from aiasst.engine.scheduler import AGING, Decode, Prefill, Scheduler, Swap

TOKEN = 0.0027
LATENCY = 0.25


def step_cost(rows: int) -> float:
    """Seconds of a decode step: 17 ms for one row, 40 for eight, 65 for sixteen."""
    return 0.0137 + 0.0033 * rows


@dataclass(frozen=True)
class Job:
    prompt: int
    answer: int
    arrives: float
    cancelled: float | None = None
    """Seconds after it arrived."""
    priority: int = 0
    deadline: float | None = None
    """Seconds after it arrived."""
    cached: int = 0


JOB = st.builds(
    Job,
    prompt=st.integers(1, 400),
    answer=st.integers(1, 12),
    arrives=st.floats(0, 5),
    cancelled=st.none() | st.floats(0, 10),
    priority=st.integers(-10, 10),
    deadline=st.none() | st.floats(0.01, 10),
    cached=st.sampled_from([0, 0, 0, 5]),
)


class Driver:
    """Executes what the scheduler says on a list of rows and a clock, and checks its promises on the way."""

    def __init__(self, slots: int, chunk: int = 256, latency: float = LATENCY) -> None:
        self.now = 0.0
        self.scheduler = Scheduler(
            slots,
            chunk,
            inter_token_latency=latency,
            clock=lambda: self.now,
            tokens_left=lambda name: self.jobs[name].answer - len(self.tokens[name]),
        )
        self.rows: list[str | None] = [None] * slots
        self.jobs: dict[str, Job] = {}
        self.submitted: dict[str, float] = {}
        self.begun: dict[str, float] = {}
        self.read: dict[str, int] = {}
        self.tokens: dict[str, list[float]] = {}
        self.ended: dict[str, str] = {}
        self.prefills: list[float] = []

    def submit(self, name: str, job: Job) -> None:
        self.jobs[name] = job
        self.submitted[name] = self.now
        deadline = None if job.deadline is None else self.now + job.deadline
        self.scheduler.submit(name, job.prompt, answer=job.answer, priority=job.priority, deadline=deadline)

    def end(self, name: str, why: str) -> None:
        assert name not in self.ended, "ended twice"
        self.ended[name] = why
        self.swap(self.scheduler.leave(name))

    def swap(self, swap: Swap | None) -> None:
        if swap:
            self.rows[swap.first], self.rows[swap.second] = self.rows[swap.second], self.rows[swap.first]

    def step(self) -> Prefill | Decode | None:
        for name in self.scheduler.expired():
            self.end(name, "deadline")
        self.admit()
        work = self.scheduler.next()
        began = self.now
        if isinstance(work, Prefill):
            assert self.rows[work.row] == work.request_id
            assert work.row >= len(self.scheduler.decoding)
            assert work.start == self.read[work.request_id]  # each token once, in order
            self.read[work.request_id] += work.count
            assert work.last == (self.read[work.request_id] == self.jobs[work.request_id].prompt)
            self.now += max(work.count * TOKEN, step_cost(1))
            self.scheduler.costs.read(work.count, self.now - began)
            self.prefills.append(self.now - began)
            self.swap(self.scheduler.prefilled(work.count))
            if work.last:
                self.say(work.request_id)
        if isinstance(work, Decode):
            assert tuple(self.rows[: len(work.request_ids)]) == work.request_ids  # contiguous from row 0
            assert len(set(work.request_ids)) == len(work.request_ids)
            self.now += step_cost(len(work.request_ids))
            self.scheduler.costs.decoded(len(work.request_ids), self.now - began)
            self.prefills.clear()
            for name in reversed(work.request_ids):
                self.say(name)
        # Work conserving: whoever is here is worked on.
        assert work is not None or not self.scheduler.busy
        return work

    def admit(self) -> None:
        while (name := self.scheduler.next_in_line) is not None and self.scheduler.free_rows:
            job = self.jobs[name]
            cached = min(job.cached, job.prompt - 1)
            if self.scheduler.too_late(name, job.prompt - cached):
                self.end(name, "too late")
                continue
            for other in self.scheduler.waiting:
                if self.jobs[other].deadline is not None:
                    continue  # may be lost already
                allowed = AGING * (job.priority - self.jobs[other].priority)
                in_order = self.submitted[name] - self.submitted[other] <= allowed + 1e-9
                # What spoils no deadline may begin before what does, but not for ever.
                due = self.submitted[other] + AGING * (1 - self.jobs[other].priority)
                assert in_order or self.now <= due + 1e-9, "overtaken for too long"
            row = self.scheduler.free_rows[-1]
            self.scheduler.admit(name, row, cached)
            self.rows[row] = name
            self.read[name] = cached
            self.begun[name] = self.now
            return

    def say(self, name: str) -> None:
        self.tokens.setdefault(name, []).append(self.now)
        if len(self.tokens[name]) == self.jobs[name].answer:
            self.end(name, "complete")

    def run(self, jobs: list[Job]) -> None:
        """Until every job has ended; nothing happens between steps."""
        coming = sorted((job.arrives, str(index), job) for index, job in enumerate(jobs))
        cancellations: list[tuple[float, str]] = []
        for _ in range(100_000):
            while coming and coming[0][0] <= self.now:
                _, name, job = coming.pop(0)
                self.submit(name, job)
                if job.cancelled is not None:
                    cancellations.append((self.now + job.cancelled, name))
            for when, name in cancellations:
                if when <= self.now and name not in self.ended:
                    self.end(name, "cancelled")
            if self.step() is None:
                if not coming:
                    return
                self.now = max(self.now, coming[0][0])
        raise AssertionError("starved")


@settings(max_examples=60, deadline=None)
@given(jobs=st.lists(JOB, min_size=1, max_size=14), slots=st.integers(1, 5), chunk=st.integers(1, 256))
def test_every_request_ends_once_and_rows_stay_contiguous(jobs: list[Job], slots: int, chunk: int) -> None:
    driver = Driver(slots, chunk)
    driver.run(jobs)
    assert sorted(driver.ended) == sorted(str(index) for index in range(len(jobs)))
    assert not driver.scheduler.busy
    assert driver.scheduler.expired() == ()
    for name, why in driver.ended.items():
        job = driver.jobs[name]
        if why == "complete":
            assert driver.read[name] == job.prompt
            assert len(driver.tokens[name]) == job.answer
        assert why != "cancelled" or job.cancelled is not None
        if why in ("deadline", "too late"):
            assert job.deadline is not None
        if why == "too late":
            assert name not in driver.begun


@settings(max_examples=60, deadline=None)
@given(
    jobs=st.lists(JOB, min_size=2, max_size=14),
    slots=st.integers(1, 5),
    chunk=st.integers(1, 256),
    latency=st.sampled_from([0.001, 0.1, 0.25, 5.0]),
)
def test_between_two_tokens_lie_one_chunk_and_one_step(jobs: list[Job], slots: int, chunk: int, latency: float) -> None:
    driver = Driver(slots, chunk, latency)
    driver.run(jobs)
    longest = max(latency, LEAST_CHUNK * TOKEN, step_cost(1)) + step_cost(slots)
    for times in driver.tokens.values():
        assert all(later - earlier <= longest + 1e-9 for earlier, later in itertools.pairwise(times))


@settings(max_examples=40, deadline=None)
@given(jobs=st.lists(JOB, min_size=1, max_size=14), slots=st.integers(1, 4))
def test_nobody_outlives_a_deadline_by_more_than_a_step(jobs: list[Job], slots: int) -> None:
    driver = Driver(slots)
    driver.run(jobs)
    step = 256 * TOKEN + step_cost(slots)
    for name, times in driver.tokens.items():
        deadline = driver.jobs[name].deadline
        assert deadline is None or times[-1] <= driver.submitted[name] + deadline + step


@settings(max_examples=15, deadline=None)
@given(slots=st.integers(1, 4), levels=st.integers(0, 2), prompt=st.integers(100, 300), answer=st.integers(20, 40))
def test_a_stream_of_better_requests_starves_nobody(slots: int, levels: int, prompt: int, answer: int) -> None:
    # More requests of a higher priority than can be answered, for ever.
    service = prompt * TOKEN + answer * step_cost(slots)
    driver = Driver(slots)
    driver.submit("one", Job(prompt, answer, 0.0, priority=1))
    driver.step()
    driver.submit("patient", Job(prompt, answer, 0.0, priority=1))
    streamed = 0
    while "patient" not in driver.begun:
        while streamed * prompt * TOKEN <= driver.now:
            driver.submit(f"better{streamed}", Job(prompt, answer, driver.now, priority=1 + levels))
            streamed += 1
        driver.step()
    # Those who came within the bound go first; each takes its service at most, and the one that goes on as long again.
    ahead = 2 + AGING * levels / (prompt * TOKEN)
    assert driver.begun["patient"] <= (ahead + slots) * service


def test_equal_requests_begin_in_the_order_of_their_coming() -> None:
    driver = Driver(2)
    driver.run([Job(5, 3, index / 100) for index in range(9)])
    assert list(driver.begun) == [str(index) for index in range(9)]


def test_priority_goes_first_and_waiting_makes_up_for_it() -> None:
    driver = Driver(1)
    driver.submit("low", Job(4, 1, 0))
    driver.now = AGING / 2
    driver.submit("high", Job(4, 1, 0, priority=1))
    assert driver.scheduler.waiting == ("high", "low")
    driver.now = AGING * 1.5
    driver.submit("late", Job(4, 1, 0, priority=1))
    assert driver.scheduler.waiting == ("high", "low", "late")


def test_chunks_fill_the_latency_that_the_step_leaves() -> None:
    driver = Driver(4)
    driver.submit("a", Job(40, 1000, 0))
    for _ in range(8):
        driver.step()
    driver.submit("long", Job(2000, 1, 0))
    counts = []
    while "long" not in driver.ended:
        work = driver.step()
        if isinstance(work, Prefill):
            counts.append(work.count)
    # One number of rows is known: a step of two is thought to take as long.
    assert set(counts[:-1]) == {int((LATENCY - step_cost(1)) / TOKEN)}
    assert sum(counts) == 2000


def test_nobody_decodes_and_chunks_are_long() -> None:
    driver = Driver(2)
    driver.submit("long", Job(600, 1, 0))
    works = [driver.step() for _ in range(3)]
    assert [work.count for work in works if isinstance(work, Prefill)] == [256, 256, 88]


@settings(max_examples=20, deadline=None)
@given(prompt=st.integers(20, 60), chunk=st.integers(1, 16))
def test_chunks_and_steps_take_turns(prompt: int, chunk: int) -> None:
    driver = Driver(3, chunk)
    driver.submit("a", Job(1, 1000, 0))
    driver.step()
    driver.submit("long", Job(prompt, 5, 0))
    history = []
    while "long" not in driver.scheduler.decoding:
        history.append(isinstance(driver.step(), Prefill))
    assert not any(a and b for a, b in itertools.pairwise(history))
    assert sum(history) == -(-prompt // chunk)


def test_a_prompt_waits_while_one_more_row_would_not_pay() -> None:
    driver = Driver(4)
    for rows, seconds in ((1, 0.02), (2, 0.03), (3, 0.09)):
        for _ in range(4):
            driver.scheduler.costs.decoded(rows, seconds)
    assert driver.scheduler.rows == 2
    for name in "abc":
        driver.submit(name, Job(4, 10, 0))
    while driver.scheduler.next_in_line:
        driver.step()
    while driver.scheduler.reading:
        driver.step()
    assert driver.scheduler.decoding == ("a", "b") and driver.scheduler.waiting == ("c",)


def test_a_deadline_ends_a_request_in_line_while_read_and_while_decoded() -> None:
    driver = Driver(1)
    driver.submit("decoded", Job(20, 1000, 0, deadline=0.3))
    driver.submit("in line", Job(20, 1000, 0, deadline=0.2))
    driver.submit("read", Job(5000, 1000, 0, deadline=9.0))
    while driver.scheduler.busy:
        driver.step()
    assert driver.ended == {"in line": "deadline", "decoded": "deadline", "read": "deadline"}
    assert 0 < driver.read["read"] < 5000 and "in line" not in driver.begun


def test_a_prompt_that_cannot_be_read_in_time_is_not_begun() -> None:
    driver = Driver(1)
    driver.submit("first", Job(100, 1, 0))
    driver.step()
    driver.submit("hopeless", Job(4000, 1, 0, deadline=1.0))
    driver.submit("fine", Job(100, 1, 0, deadline=1.0))
    while driver.scheduler.busy:
        driver.step()
    assert driver.ended == {"first": "complete", "hopeless": "too late", "fine": "complete"}


def test_an_id_that_is_used_again_has_its_own_deadline() -> None:
    driver = Driver(1)
    driver.submit("a", Job(4, 4, 0, deadline=1.0))
    driver.end("a", "cancelled")
    driver.ended.clear()
    driver.submit("a", Job(4, 4, 0, deadline=2.0))
    driver.now = 1.5
    assert driver.scheduler.expired() == ()
    driver.now = 2.0
    assert driver.scheduler.expired() == ("a",)
    assert driver.scheduler.expired() == ()


def test_the_last_row_moves_into_the_hole() -> None:
    driver = Driver(3, 8)
    for name in "abc":
        driver.submit(name, Job(4, 100, 0))
    while len(driver.scheduler.decoding) < 3:
        driver.step()
    first, _, last = driver.scheduler.decoding
    assert driver.scheduler.leave(first) == Swap(0, 2)
    assert driver.scheduler.decoding[0] == last
    assert driver.scheduler.free_rows == (2,)


def test_nobody_begins_at_the_cost_of_a_deadline_that_would_hold() -> None:
    """Three steps of two rows take longer than three of one; with the deadline between them the second one waits."""
    for seconds, alone in ((3 * step_cost(1) + 0.01, True), (10.0, False)):
        driver = Driver(slots=2)
        learn(driver)
        driver.submit("a", Job(16, 4, 0, deadline=seconds + 16 * TOKEN))
        driver.step()
        driver.submit("b", Job(16, 4, 0))
        while driver.scheduler.busy:
            driver.step()
        assert driver.ended == {"a": "complete", "b": "complete"}
        assert (driver.begun["b"] >= driver.tokens["a"][-1]) == alone


def test_who_cannot_keep_his_deadline_lets_the_next_one_begin() -> None:
    driver = Driver(slots=2)
    learn(driver)
    driver.submit("under way", Job(16, 40, 0))
    driver.step()
    driver.submit("late", Job(16, 100, 0, deadline=0.5))
    driver.submit("next", Job(16, 4, 0, deadline=1.0))
    while driver.scheduler.busy:
        driver.step()
    assert driver.ended == {"under way": "complete", "late": "deadline", "next": "complete"}
    assert "late" not in driver.begun


def learn(driver: Driver) -> None:
    """What a token and a step of one and of two rows cost."""
    driver.scheduler.costs.read(64, 64 * TOKEN)
    for rows in (1, 2, 1, 2):
        driver.scheduler.costs.decoded(rows, step_cost(rows))


def test_contradictions_are_refused() -> None:
    scheduler = Scheduler(2, 4)
    with pytest.raises(KeyError):
        scheduler.leave("nobody")
    with pytest.raises(ValueError):
        scheduler.prefilled(1)
    scheduler.submit("a", 3)
    with pytest.raises(ValueError):
        scheduler.admit("a", 0, 3)  # the last token must be computed
    with pytest.raises(ValueError):
        scheduler.admit("a", 2, 0)
    for slots, chunk, latency in ((0, 4, 1.0), (1, 0, 1.0), (1, 1, 0.0)):
        with pytest.raises(ValueError):
            Scheduler(slots, chunk, inter_token_latency=latency)
