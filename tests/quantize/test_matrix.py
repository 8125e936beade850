from __future__ import annotations

import numpy as np
import pytest

from aiasst.quantize.matrix import Matrix, copy_matrix


@pytest.mark.parametrize("shape", [(1, 1), (300, 7), (256, 513)])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_copy_is_a_copy(shape: tuple[int, int], transposed: bool) -> None:
    source = np.arange(shape[0] * shape[1], dtype=np.float32).reshape(shape[::-1] if transposed else shape)
    source = source.T if transposed else source
    target = np.empty(shape, np.float32)
    copy_matrix(source, target)
    np.testing.assert_array_equal(target, source)


def test_rows_are_output_channels_however_the_file_lies() -> None:
    stored = np.zeros((3, 5), np.float32)
    products = Matrix("w", "o", 0, n=5, k=3, rows_first=False)
    embedding = Matrix("e", "embed", None, n=3, k=5, rows_first=True)
    for matrix in (products, embedding):
        assert matrix.as_rows(stored).shape == (matrix.n, matrix.k)
        assert matrix.as_stored(matrix.as_rows(stored)).shape == matrix.stored_shape == (3, 5)
