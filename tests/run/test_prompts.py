"""Lines to rows: what is a row, what is a bad one, and that nothing else in the file matters."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiasst.engine.constrain import Constraint
from aiasst.engine.requests import Sampling
from aiasst.errors import ArtifactError
from aiasst.run.prompts import BadRow, Row, RowReader, open_prompts, row_seed
from aiasst.tokenizer import Message

DEFAULTS = Sampling(max_tokens=7, temperature=0.5)


def reader() -> RowReader:
    return RowReader(DEFAULTS, stop=("END",), seed=3)


def read(row: object) -> Row | BadRow:
    return reader().read(1, json.dumps(row).encode())


def test_a_row_overrides_the_defaults() -> None:
    row = read({"id": "a", "prompt": "Once", "max_tokens": 3, "temperature": 0, "seed": 9, "stop": "."})
    assert isinstance(row, Row)
    assert row.id == "a"
    assert row.request.prompt == "Once"
    assert row.request.sampling == Sampling(max_tokens=3, temperature=0, seed=9)
    assert row.request.stop == (".",)


def test_a_row_may_ask_for_everything_that_an_engine_can() -> None:
    row = read({
        "prompt": "Once", "frequency_penalty": 0.5, "presence_penalty": -1, "logit_bias": {"12": -100, "7": 1.5}, "logprobs": 3
    })  # fmt: skip
    assert isinstance(row, Row)
    assert row.request.sampling == dataclasses.replace(
        DEFAULTS,
        seed=row_seed(3, 1),
        frequency_penalty=0.5,
        presence_penalty=-1,
        logit_bias={12: -100, 7: 1.5},
        logprobs=3,
    )
    assert row.request.constraint is None


@pytest.mark.parametrize(
    ("fields", "constraint"),
    [
        ({"json_schema": {"type": "object", "b": 1, "a": 2}}, ("json_schema", '{"type": "object", "b": 1, "a": 2}')),
        ({"json_schema": True}, ("json_schema", "true")),
        ({"regex": "a|b"}, ("regex", "a|b")),
        ({"grammar": 'start: "a"'}, ("grammar", 'start: "a"')),
    ],
)
def test_a_row_may_say_what_its_answer_must_be(fields: dict, constraint: tuple[str, str]) -> None:
    row = read({"prompt": "Once", **fields})
    assert isinstance(row, Row)
    assert row.request.constraint == Constraint(*constraint)  # type: ignore[arg-type]


def test_a_row_that_says_nothing_has_the_defaults_and_the_line_as_id() -> None:
    row = reader().read(12, b'{"prompt": "Once"}')
    assert isinstance(row, Row)
    assert row.id == 12
    assert row.request.sampling == Sampling(max_tokens=7, temperature=0.5, seed=row_seed(3, 12))
    assert row.request.stop == ("END",)


def test_messages() -> None:
    row = read({"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]})
    assert isinstance(row, Row)
    assert row.request.messages == (Message("system", "Be kind."), Message("user", "Hello"))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"prompt": "a"', "line 1 is not valid JSON at column"),
        (b"[1]", "no JSON object"),
        (b'{"prompt": "a", "top_n": 3}', "unknown key 'top_n'"),
        (b'{"prompt": "a", "temperature": "0.5"}', "'temperature'"),
        (b'{"prompt": "a", "temperature": -1}', "temperature is -1"),
        (b'{"prompt": "a", "temperature": NaN}', "NaN"),
        (b'{"prompt": "a", "max_tokens": 0}', "max_tokens is 0"),
        (b'{"prompt": "a", "max_tokens": 2.5}', "'max_tokens'"),
        (b'{"prompt": "a", "seed": true}', "'seed'"),
        (b'{"prompt": "a", "stop": [1]}', "stop"),
        (b'{"prompt": "a", "regex": "a", "json_schema": {}}', "not 'json_schema' and 'regex'"),
        (b'{"prompt": "a", "json_schema": "{}"}', "json_schema"),
        (b'{"prompt": "a", "logit_bias": {"x": 1}}', "logit_bias"),
        (b'{"prompt": "a", "logit_bias": {"3": "1"}}', "logit_bias"),
        (b'{"prompt": "a", "logit_bias": {"3": 101}}', "logit_bias of token 3 is 101"),
        (b'{"prompt": "a", "logprobs": 21}', "logprobs is 21"),
        (b'{"prompt": "a", "frequency_penalty": 3}', "frequency_penalty is 3"),
        (b'{"prompt": 3}', "'prompt'"),
        (b'{"id": "x"}', "either 'prompt' or 'messages'"),
        (b'{"prompt": "a", "messages": []}', "either 'prompt' or 'messages'"),
        (b'{"messages": [{"role": "user"}]}', "messages.0.content"),
        (b'{"id": true, "prompt": "a"}', "'id"),
        (b'{"id": [1], "prompt": "a"}', "'id"),
        (b'{"prompt": "\\ud800"}', "not UTF-8"),
        (b'{"prompt": "\xff"}', "not UTF-8"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_a_bad_row_says_what_is_wrong(line: bytes, words: str) -> None:
    row = reader().read(1, line)
    assert isinstance(row, BadRow)
    assert words in row.error.message
    assert row.error.hint


def test_a_bad_row_keeps_its_id_where_it_can_be_read() -> None:
    assert reader().read(4, b'{"id": "x", "prompt": 3}').id == "x"
    assert reader().read(4, b'{"id": "x", "prompt": ').id is None


def test_the_later_of_two_rows_with_one_id_is_bad() -> None:
    rows = reader()
    assert isinstance(rows.read(1, b'{"id": "2", "prompt": "a"}'), Row)
    later = rows.read(2, b'{"prompt": "b"}')  # its id is its line, which is taken
    assert isinstance(later, BadRow)
    assert "an earlier row has the id 2 too" in later.error.message


def test_a_file_with_a_byte_order_mark_blank_lines_and_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n  \n{"prompt": "b"}')
    with open_prompts(path) as prompts:
        assert (prompts.rows, prompts.lines) == (2, 4)
        assert list(prompts) == [(1, b'{"prompt": "a"}'), (4, b'{"prompt": "b"}')]


def test_lines_added_meanwhile_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n')
    with open_prompts(path) as prompts:
        with path.open("a") as file:
            file.write('{"prompt": "b"}\n')
        assert len(list(prompts)) == 1


def test_a_stream_is_the_same_as_a_file(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n' * 100)
    with open_prompts(path) as from_file, open_prompts(io.BytesIO(path.read_bytes())) as from_stream:
        assert (from_file.sha256, list(from_file)) == (from_stream.sha256, list(from_stream))


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no prompts file"), open_prompts(tmp_path / "absent"):
        pass
    with pytest.raises(ArtifactError, match="cannot be read"), open_prompts(tmp_path):
        pass


@given(st.integers(), st.one_of(st.text(st.characters(codec="utf-8")), st.integers()))
def test_the_seed_of_a_row_depends_on_seed_and_id_alone(seed: int, row_id: str | int) -> None:
    assert row_seed(seed, row_id) == row_seed(seed, row_id)
    assert 0 <= row_seed(seed, row_id) < 2**32
    assert row_seed(seed, row_id) != row_seed(seed + 1, row_id)


@given(st.binary())
def test_no_line_whatever_stops_the_reader(line: bytes) -> None:
    assert reader().read(1, line).line == 1


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_no_json_whatever_stops_the_reader(value: object) -> None:
    assert isinstance(read(value), BadRow)
    assert isinstance(read({"prompt": value, "id": value, "stop": value, "messages": value}), BadRow)
