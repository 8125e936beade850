"""The cost table between and beyond what was measured: rows, sizes, blocks."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiasst.artifacts.cost_table import CostTable
from aiasst.artifacts.device import Costs, MatmulPoint
from aiasst.artifacts.recipe import WeightFormat
from aiasst.errors import ArtifactError

INT4 = WeightFormat(format="int4", block_size=128)


def point(rows: int, microseconds: float, size: int = 2048, label: str = "int4-b128") -> MatmulPoint:
    return MatmulPoint(
        format=label,
        rows=rows,
        k=size,
        n=size,
        threads=2,
        microseconds=microseconds,
        gigamacs_per_second=1.0,
        noise=0.0,
    )


TWO_SIZES = CostTable.of(Costs(matmul=(point(1, 4, 256), point(1, 100), point(8, 200), point(8, 10, 256))))


def test_measured_points_come_back() -> None:
    assert TWO_SIZES.microseconds(INT4, 1, 2048, 2048) == pytest.approx(100)
    assert TWO_SIZES.microseconds(INT4, 8, 2048, 2048) == pytest.approx(200)
    assert TWO_SIZES.microseconds(INT4, 1, 256, 256) == pytest.approx(4)


def test_between_two_sizes_the_time_of_one_multiplication_lies_between_theirs() -> None:
    small, large = 4 / 256**2, 100 / 2048**2
    between = TWO_SIZES.microseconds(INT4, 1, 1024, 512) / (1024 * 512)
    assert large < between < small


def test_beyond_the_largest_size_it_stays_in_proportion() -> None:
    assert TWO_SIZES.microseconds(INT4, 1, 4096, 4096) == pytest.approx(400)


def test_below_the_smallest_size_it_falls_as_between_the_two_smallest() -> None:
    at, below = (TWO_SIZES.microseconds(INT4, 1, side, side) for side in (256, 128))
    # A product of a 64th of the size took a 25th of the time.
    assert at / below == pytest.approx(4 ** (math.log(100 / 4) / math.log(64)))
    assert at / 4 < below < at


def test_of_two_shapes_of_one_size_the_slower_one_counts() -> None:
    wide = point(1, 120).model_copy(update={"k": 1024, "n": 4096})
    table = CostTable.of(Costs(matmul=(point(1, 100), wide)))
    assert table.microseconds(INT4, 1, 2048, 2048) == pytest.approx(120)


def test_what_was_not_measured_takes_for_ever() -> None:
    assert math.isinf(TWO_SIZES.microseconds(WeightFormat(format="w8a8"), 1, 64, 64))
    with pytest.raises(ArtifactError, match="no measured costs"):
        CostTable.of(Costs())


@given(st.integers(1, 500), st.integers(1, 500), st.integers(64, 8192))
def test_more_rows_never_take_less_time(rows: int, more: int, size: int) -> None:
    fewer, larger = sorted((rows, more))
    few, many = (TWO_SIZES.microseconds(INT4, count, size, size) for count in (fewer, larger))
    assert few <= many * (1 + 1e-9)
