"""A .npy file that grows row by row, and what a killed process leaves of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aiasst.artifacts.vectors import open_vectors, read_vectors
from aiasst.errors import ArtifactError, ResourceError

ROWS = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)


def test_what_was_appended_is_what_numpy_reads(tmp_path: Path) -> None:
    path = tmp_path / "v.npy"
    with open_vectors(path, 0) as file:
        file.append(ROWS[:3])
        assert np.array_equal(np.load(path), ROWS[:3])
        file.append(ROWS[3:])
    assert np.array_equal(np.load(path, allow_pickle=False), ROWS)
    assert np.array_equal(read_vectors(path, 7), ROWS)


def test_rows_behind_those_that_count_are_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "v.npy"
    with open_vectors(path, 0) as file:
        file.append(ROWS)
    with path.open("ab") as torn:
        torn.write(b"\0" * 7)
    with open_vectors(path, 4) as file:
        assert file.rows == 4
        file.append(ROWS[:1])
    assert np.array_equal(np.load(path), np.concatenate([ROWS[:4], ROWS[:1]]))
    assert path.stat().st_size == 128 + 5 * 5 * 4


def test_without_a_row_no_file_stays(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), open_vectors(tmp_path / "v.npy", 0):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00", b"x" * 200])
def test_another_file_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "v.npy"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="damaged"), open_vectors(path, 2):
        pass
    assert path.read_bytes() == content


def test_fewer_rows_than_count_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "v.npy"
    with open_vectors(path, 0) as file:
        file.append(ROWS)
    with pytest.raises(ArtifactError, match="less than 8"):
        read_vectors(path, 8)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="may not write"), open_vectors(tmp_path / "absent" / "v.npy", 0):
        pass
