"""Rows through the engine: every row once, several at once, pulled only when there is room."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiasst.engine.requests import Sampling
from aiasst.progress import Progress
from aiasst.run import batch
from aiasst.run.answers import Answer
from aiasst.run.batch import Meter, answer_rows
from aiasst.run.prompts import BadRow, Row, RowReader, row_seed
from tests.fake_text_engine import FakeTextEngine, expected_words


def rows_of(*lines: object) -> Iterator[Row | BadRow]:
    reader = RowReader(Sampling(max_tokens=5), (), seed=1)
    for number, line in enumerate(lines, start=1):
        yield reader.read(number, json.dumps(line).encode())


def answers_to(engine: FakeTextEngine, *lines: object, meter: Meter | None = None) -> list[Answer]:
    found: list[Answer] = []
    answer_rows(engine, rows_of(*lines), found.append, meter or Meter(len(lines)))
    return found


def test_an_answer_has_its_text_reason_usage_and_seed() -> None:
    (answer,) = answers_to(FakeTextEngine(), {"id": "a", "prompt": "tell me"})
    seed = row_seed(1, "a")
    assert answer.text == "".join(" " + word for word in expected_words("tell me", seed, 5))
    assert (answer.id, answer.line, answer.finish_reason, answer.seed) == ("a", 1, "length", seed)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 5)


def test_answers_come_as_they_finish() -> None:
    found = answers_to(FakeTextEngine(), {"id": "slow", "prompt": "a"}, {"id": "quick", "prompt": "b fast"})
    assert [a.id for a in found] == ["quick", "slow"]


def test_bad_rows_get_an_error_and_the_others_go_on() -> None:
    long = "word " * 70
    found = answers_to(
        FakeTextEngine(template=False),
        {"id": "a", "prompt": "tell"},
        {"id": "b", "prompt": long},
        {"id": "c", "messages": [{"role": "user", "content": "hello"}]},
        {"id": "d"},
        {"id": "e", "prompt": "tell"},
    )
    errors = {a.id: a.error.message for a in found if a.error}
    assert sorted(errors) == ["b", "c", "d"]
    assert "70 tokens; the context is 64" in errors["b"]
    assert sorted(str(a.id) for a in found if a.text) == ["a", "e"]


def test_rows_are_pulled_only_when_there_is_room() -> None:
    engine, pulled = FakeTextEngine(slots=3), []

    def counted() -> Iterator[Row | BadRow]:
        for row in rows_of(*({"prompt": f"tell {n}"} for n in range(50))):
            pulled.append(row)
            yield row

    written: list[Answer] = []

    def write(answer: Answer) -> None:
        written.append(answer)
        assert len(pulled) - len(written) < 3

    answer_rows(engine, counted(), write, Meter(50))
    assert len(written) == 50
    assert engine.widest == 3


@given(
    slots=st.integers(1, 5),
    kinds=st.lists(st.sampled_from(["slow", "fast", "bad", "long"]), max_size=30),
)
def test_every_row_is_answered_once_and_alike_in_every_batch(slots: int, kinds: list[str]) -> None:
    prompts = {"slow": "tell me", "fast": "tell me fast", "bad": None, "long": "x " * 100}
    rows = [{"id": n, "prompt": prompts[kind]} for n, kind in enumerate(kinds)]
    found = answers_to(FakeTextEngine(slots=slots), *rows)
    assert sorted(a.id for a in found) == list(range(len(rows)))  # type: ignore[type-var]
    alone = answers_to(FakeTextEngine(slots=1), *rows)
    assert {a.id: a.text for a in found} == {a.id: a.text for a in alone}


def test_progress_tells_rows_and_tokens_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "REPORT_SECONDS", 0)
    events: list[Progress] = []
    answers_to(FakeTextEngine(), {"prompt": "a"}, {"prompt": "b"}, meter=Meter(5, 3, events.append))
    assert any(3 < event.done < 4 for event in events)  # a row half answered counts half
    assert (events[0].done, events[-1].done, events[-1].total) == (3, 5, 5)
    assert all(a.done <= b.done for a, b in itertools.pairwise(events))
    assert events[-1].note.startswith("5/5 rows, ")
    assert events[-1].note.endswith(" tok/s")


def test_tokens_are_counted_by_the_engine() -> None:
    meter = Meter(2)
    answers_to(FakeTextEngine(), {"prompt": "a b"}, {"prompt": "c fast"}, meter=meter)
    assert (meter.prompt_tokens, meter.completion_tokens, meter.rows) == (4, 6, 2)


def test_a_failing_model_ends_the_job() -> None:
    class Failing(FakeTextEngine):
        def step(self):  # type: ignore[no-untyped-def]
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError):
        answers_to(Failing(), {"prompt": "a"})
