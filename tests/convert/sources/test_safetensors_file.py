"""Headers are checked as strictly as the reference implementation checks them, and what is written can be read by it."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from aiasst.convert.sources import safetensors_file
from aiasst.convert.sources.safetensors_file import PlannedTensor, read_header
from aiasst.errors import CheckpointError

SHAPES = st.dictionaries(
    st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=8).filter(
        lambda name: name != "__metadata__"
    ),
    st.lists(st.integers(0, 4), max_size=3).map(tuple),
    min_size=1,
    max_size=4,
)


def raw_file(path: Path, header: object, data: bytes) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def reference_accepts(path: Path) -> bool:
    try:
        with safe_open(path, "numpy"):
            return True
    except SafetensorError:
        return False


def we_accept(path: Path) -> bool:
    try:
        read_header(path)
    except CheckpointError:
        return False
    return True


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shapes=SHAPES)
def test_what_is_written_is_read_back_by_the_reference(tmp_path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    path = tmp_path / "x.safetensors"
    arrays = {name: np.random.default_rng(0).standard_normal(shape).astype("<f4") for name, shape in shapes.items()}
    planned = [PlannedTensor(name, "F32", array.shape) for name, array in arrays.items()]
    safetensors_file.write(path, planned, lambda name: arrays[name].tobytes())
    with safe_open(path, "numpy") as file:
        assert set(file.keys()) == set(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(file.get_tensor(name), array)
    assert {name: entry.shape for name, entry in read_header(path).items()} == shapes


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_with_a_byte_changed_or_cut_off_is_judged_as_the_reference_judges_it(
    tmp_path: Path, data: st.DataObject
) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": np.zeros((2, 3), "<f4"), "b": np.ones(5, "<f2")}, path)
    content = bytearray(path.read_bytes())
    where = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[where] = data.draw(st.integers(0, 255))
    else:
        content = content[:where]
    path.write_bytes(content)
    # Stricter than the reference is allowed nowhere, laxer nowhere: either would be a lie to the user.
    assert we_accept(path) == reference_accepts(path)


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"1234", "ends before 'a' does"),
        ({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, b"12345678", "not its shape"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"12345678", "hole or an overlap before 'a'"),
        (
            {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
            b"12345678",
            "4 bytes that belong to no tensor",
        ),
        ({"a": {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}}, b"1234", "unknown type 'X9'"),
        ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"1234", "broken header entry for 'a'"),
        ({"a": 3}, b"", "broken header entry for 'a'"),
        ([1], b"", "not a JSON object"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, header: object, data: bytes, words: str) -> None:
    path = raw_file(tmp_path / "model.safetensors", header, data)
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert words in caught.value.message
    assert "model.safetensors" in caught.value.message
    assert not reference_accepts(path)


def test_a_header_longer_than_the_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    with pytest.raises(CheckpointError, match="says that its header has"):
        read_header(path)
    path.write_bytes(b"abc")
    with pytest.raises(CheckpointError, match="has 3 bytes, too few"):
        read_header(path)


def test_wrong_bytes_are_never_written_silently(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 bytes given, 4 planned"):
        safetensors_file.write(tmp_path / "x", [PlannedTensor("a", "F32", (1,))], lambda _: b"abc")
