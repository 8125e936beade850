from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aiasst.errors import ArtifactError
from aiasst.quantize.calibrate.samples import load_samples


def test_token_ids_are_read(tmp_path: Path) -> None:
    path = tmp_path / "sample_data.npz"
    np.savez(path, input_ids=np.arange(12, dtype=np.int32).reshape(3, 4), other=np.zeros(1))
    samples = load_samples(path)
    assert (samples.name, samples.ids.shape, samples.ids.dtype) == ("sample_data.npz", (3, 4), np.int64)


def test_a_single_array_needs_no_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", np.ones((2, 5), np.int64))
    assert load_samples(tmp_path / "a.npz").ids.shape == (2, 5)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.zeros((2, 3), np.float32)}, "float32"),
        ({"x": np.zeros(3, np.int64)}, "[3]"),
        ({"x": np.zeros((0, 3), np.int64)}, "[0, 3]"),
        ({"x": np.full((1, 2), -1)}, "not token ids"),
        ({"x": np.zeros((1, 2), int), "y": np.zeros((1, 2), int)}, "none is input_ids"),
        ({"input_ids": np.array([{"a": 1}], dtype=object)}, "not a readable .npz"),
    ],
)
def test_anything_else_is_refused_in_words(tmp_path: Path, arrays: dict[str, np.ndarray], words: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ArtifactError) as caught:
        load_samples(tmp_path / "a.npz")
    assert words in caught.value.message
    assert "np.savez" in caught.value.hint


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no calibration file"):
        load_samples(tmp_path / "absent.npz")


def test_files_of_other_kinds_and_cut_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "whole.npz", input_ids=np.ones((9, 9), int))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:100])
    for name in ("text.npz", "cut.npz"):
        with pytest.raises(ArtifactError, match=r"is not an \.npz file"):
            load_samples(tmp_path / name)
