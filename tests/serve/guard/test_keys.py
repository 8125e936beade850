"""API keys: files, environment, recognition."""

from __future__ import annotations

import hmac
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiasst.errors import UsageError
from aiasst.serve.guard import keys as module
from aiasst.serve.guard.gate import Gate
from aiasst.serve.guard.keys import Keys, merged, parse, presented, read_environment, read_file
from aiasst.serve.refusals import Refusal
from aiasst.serve.settings import Limits, ServeSettings

NAMES = st.from_regex(re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", re.ASCII), fullmatch=True)
KEYS = st.from_regex(re.compile(r"[A-Za-z0-9\-._~+/]{1,40}={0,2}", re.ASCII), fullmatch=True)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text("# who may ask\nanna: key-of-anna\n\n  ben :key-of-ben==\nalone~+/\n", encoding="utf-8")
    path.chmod(0o600)
    return path


def test_a_file_has_names_or_keys_alone(file: Path) -> None:
    assert read_file(file) == ({"anna": "key-of-anna", "ben": "key-of-ben==", "key3": "alone~+/"}, ())


@settings(max_examples=30)
@given(st.dictionaries(NAMES, KEYS, max_size=20))
def test_what_is_written_is_read(keys: dict[str, str]) -> None:
    lines = [f"{name}: {key}" for name, key in keys.items()]
    if len(set(keys.values())) == len(keys):
        assert parse(lines, "file") == keys
    else:
        with pytest.raises(UsageError, match="two names"):
            parse(lines, "file")


def test_everyone_may_not_write_and_is_told_of_when_reading(file: Path) -> None:
    file.chmod(0o644)
    assert "chmod 600" in read_file(file)[1][0]
    for mode in (0o620, 0o602, 0o666):
        file.chmod(mode)
        with pytest.raises(UsageError, match="may write") as caught:
            read_file(file)
        assert caught.value.hint == f"chmod 600 {file}"


@pytest.mark.parametrize(
    "line", ["se cret: key", "name: se cret", "secrét", "se:cr:et", ": secret", "secret:", "secret\0"]
)
def test_a_line_that_is_no_key_is_told_by_its_number_only(tmp_path: Path, line: str) -> None:
    path = tmp_path / "keys"
    path.write_text(f"good: {'g' * 20}\n{line}\n", encoding="utf-8")
    path.chmod(0o600)
    with pytest.raises(UsageError, match="line 2") as caught:
        read_file(path)
    assert line.strip(": ") not in f"{caught.value} {caught.value.hint}"


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read API keys"):
        read_file(tmp_path / "missing")
    for number, content in enumerate((b"\xff\xfe", b"# nothing\n", b"k" * (2**20 + 1))):
        path = tmp_path / str(number)
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(UsageError):
            read_file(path)


def test_the_environment_has_one_key_or_several() -> None:
    assert read_environment({}) == {}
    assert read_environment({"AIASST_API_KEY": "alone"}) == {"default": "alone"}
    assert read_environment({"AIASST_API_KEY": "anna: one"}) == {"anna": "one"}
    assert read_environment({"AIASST_API_KEYS": "anna: one, two\nben:three"}) == {
        "anna": "one",
        "key2": "two",
        "ben": "three",
    }
    both = {"AIASST_API_KEY": "alone", "AIASST_API_KEYS": "anna: one"}
    assert read_environment(both) == {"default": "alone", "anna": "one"}
    assert read_environment({"AIASST_API_KEY": "one", "AIASST_API_KEYS": "anna: one"}) == {"anna": "one"}


def test_names_and_keys_are_unambiguous() -> None:
    assert merged({"a": "1"}, {"a": "1", "b": "2"}) == {"a": "1", "b": "2"}
    for other in ({"a": "2"}, {"b": "1"}):
        with pytest.raises(UsageError):
            merged({"a": "1"}, other)
    with pytest.raises(UsageError, match="second key"):
        parse(["a: 1", "a: 2"], "file")


@pytest.mark.parametrize(
    ("authorization", "x_api_key", "key"),
    [
        ("Bearer abc", None, "abc"),
        ("bearer   abc ", "other", "abc"),
        ("Basic abc", None, None),
        ("Basic abc", "abc", "abc"),
        ("Bearer", "abc", "abc"),
        ("Bearer ", None, None),
        ("abc", None, None),
        (None, "", None),
        (None, None, None),
    ],
)
def test_where_a_key_is_looked_for(authorization: str | None, x_api_key: str | None, key: str | None) -> None:
    assert presented(authorization, x_api_key) == key


@settings(max_examples=30)
@given(st.dictionaries(NAMES, KEYS, min_size=1, max_size=5), st.text(max_size=50))
def test_only_the_keys_themselves_are_known(keys: dict[str, str], other: str) -> None:
    known = Keys(keys)
    for key in keys.values():
        assert keys[known.name(key)] == key
    if other not in keys.values():
        with pytest.raises(Refusal) as caught:
            known.name(other)
        assert (caught.value.reason, caught.value.status) == ("unauthorized", 401)


def test_all_keys_are_compared_whichever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[int, int]] = []

    compare = hmac.compare_digest

    def count(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return compare(one, other)

    monkeypatch.setattr(module.hmac, "compare_digest", count)
    known = Keys({"a": "first", "b": "second", "c": "third"})
    for key in ("first", "third"):
        known.name(key)
    with pytest.raises(Refusal):
        known.name("another")
    # Nine comparisons of hashes, all of one length.
    assert compared == [(32, 32)] * 9


def test_a_gate_without_keys_asks_for_none_and_counts_addresses() -> None:
    gate = Gate(ServeSettings(limits=Limits(requests_per_minute=4)))
    assert gate.caller(None, "10.0.0.1").name == gate.caller("Bearer anything", "10.0.0.1").name == ""
    with pytest.raises(Refusal) as caught:
        gate.caller(None, "10.0.0.1")
    assert (caught.value.reason, caught.value.status) == ("rate_limited", 429)
    assert caught.value.retry_after is not None
    assert 0 < caught.value.retry_after <= 15
    gate.caller(None, "10.0.0.2")


def test_a_gate_with_keys_counts_keys() -> None:
    gate = Gate(ServeSettings(keys={"anna": "a" * 20, "ben": "b" * 20}, limits=Limits(requests_per_minute=2)))
    assert gate.keyed
    assert gate.caller(f"Bearer {'a' * 20}", "10.0.0.1").name == "anna"
    with pytest.raises(Refusal):
        gate.caller(None, "10.0.0.1", x_api_key="a" * 20)
    assert gate.caller(None, "10.0.0.1", x_api_key="b" * 20).name == "ben"
    with pytest.raises(Refusal) as caught:
        gate.caller(None, "10.0.0.1")
    assert caught.value.reason == "unauthorized"
