"""The Hessian of a tied matrix: the head's, with a say for every direction."""

from __future__ import annotations

import numpy as np

from aiasst.quantize.corrections.tied import tied_hessian


def test_every_direction_counts_and_the_rest_stays() -> None:
    rows = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    hessian = rows.T @ rows  # of rank 3
    shared = tied_hessian(hessian)
    assert np.linalg.eigvalsh(shared).min() > 0.29 * np.trace(hessian) / 8
    np.testing.assert_array_equal(shared - np.diag(np.diag(shared)), hessian - np.diag(np.diag(hessian)))
    assert np.linalg.matrix_rank(hessian) == 3  # the original was left alone
