from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from aiasst.quantize.weights_file import WeightsFile, read_matrix


def test_tensors_come_back_from_aligned_places(tmp_path: Path) -> None:
    arrays = [np.arange(105, dtype=np.uint8), np.linspace(0, 1, 7, dtype=np.float32), np.zeros((0, 3), np.float32)]
    with WeightsFile(tmp_path / "w.data") as file:
        tensors = [file.write(f"t{i}", array) for i, array in enumerate(arrays)]
        tensors.append(file.copy("t3", ir.tensor(np.arange(6, dtype=np.int64).reshape(2, 3))))
        assert all(file.holds(tensor) for tensor in tensors)
    for tensor, array in zip(tensors, [*arrays, np.arange(6).reshape(2, 3)], strict=True):
        assert (tensor.offset or 0) % 64 == 0
        if array.size:
            np.testing.assert_array_equal(tensor.numpy(), array)


def test_a_matrix_is_read_from_any_place_in_a_file(tmp_path: Path) -> None:
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    (tmp_path / "w.data").write_bytes(b"odd" + matrix.tobytes())
    tensor = ir.ExternalTensor(
        "w.data", 3, matrix.nbytes, ir.DataType.FLOAT, shape=ir.Shape(matrix.shape), name="w", base_dir=tmp_path
    )
    np.testing.assert_array_equal(read_matrix(tensor), matrix)
    np.testing.assert_array_equal(read_matrix(ir.tensor(matrix)), matrix)
    with WeightsFile(tmp_path / "copy.data") as file:
        copy = file.copy("w", tensor)
    np.testing.assert_array_equal(copy.numpy(), matrix)


def test_a_second_file_stores_only_what_the_first_has_not(tmp_path: Path) -> None:
    same, other = np.arange(500, dtype=np.uint8), np.arange(500, dtype=np.uint8)[::-1].copy()
    with WeightsFile(tmp_path / "a.data", lends=True) as first:
        first.write("first", np.zeros(3, np.float32))
        lent = first.write("lent", same)
    with WeightsFile(tmp_path / "b.data", first=first) as second:
        # The bytes count, whatever they are taken for.
        again = second.copy("again", ir.tensor(same.view(np.int8).reshape(5, 100)))
        own = second.write("own", other)
        assert second.shared == {"again"} and second.holds(again) and second.holds(own) and second.holds(lent)
        assert not first.holds(own)
    assert (again.location, again.offset, again.length) == ("a.data", lent.offset, lent.length)
    assert own.location == "b.data" and (tmp_path / "b.data").stat().st_size == 500
    np.testing.assert_array_equal(again.numpy(), same.view(np.int8).reshape(5, 100))
    np.testing.assert_array_equal(own.numpy(), other)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full to play a full disk")
def test_a_full_disk_is_told_by_its_number() -> None:
    with pytest.raises(OSError, match="No space left") as caught, WeightsFile(Path("/dev/full")) as file:
        file.write("big", np.zeros(1 << 20, np.float32))
    assert caught.value.errno == 28
