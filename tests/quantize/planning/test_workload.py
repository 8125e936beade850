from __future__ import annotations

import math

import pytest

from aiasst.artifacts.cost_table import CostTable
from aiasst.artifacts.device import BandwidthPoint, Costs, MatmulPoint
from aiasst.artifacts.model_folder import Shape
from aiasst.artifacts.recipe import WeightFormat
from aiasst.errors import ArtifactError
from aiasst.quantize.matrix import Matrix
from aiasst.quantize.planning.budget import Workload
from aiasst.quantize.planning.units import columns_of, find_units
from aiasst.quantize.planning.workload import attention_milliseconds, milliseconds


def _point(label: str, rows: int, microseconds: float) -> MatmulPoint:
    return MatmulPoint(
        format=label,
        rows=rows,
        k=2048,
        n=2048,
        threads=2,
        microseconds=microseconds,
        gigamacs_per_second=1.0,
        noise=0.0,
    )


COSTS = Costs(
    bandwidth=(BandwidthPoint(threads=2, gigabytes_per_second=20.0, noise=0.0),),
    matmul=(
        _point("int4-b128", 1, 100.0), _point("int4-b128", 8, 200.0), _point("int4-b256", 1, 80.0),
        _point("int4-b256", 8, 160.0), _point("int2-b64", 1, 60.0), _point("fp32", 1, 800.0), _point("fp32", 8, 900.0),
    ),
)  # fmt: skip


TABLE = CostTable.of(COSTS)


def _spec(name: str, block: int | None = None) -> WeightFormat:
    return WeightFormat(format=name, block_size=block)  # type: ignore[arg-type]


def test_time_is_measured_time_in_proportion_to_the_size() -> None:
    assert TABLE.microseconds(_spec("int4", 128), 1, 2048, 2048) == pytest.approx(100)
    assert TABLE.microseconds(_spec("int4", 128), 1, 2048, 1024) == pytest.approx(50)
    assert TABLE.microseconds(_spec("fp16"), 1, 2048, 2048) == pytest.approx(800)


def test_rows_between_and_beyond_the_measured_ones() -> None:
    between = TABLE.microseconds(_spec("int4", 128), 3, 2048, 2048)
    assert 100 < between < 200
    assert TABLE.microseconds(_spec("int4", 128), 80, 2048, 2048) == pytest.approx(2000)


def test_blocks_that_were_not_measured_follow_from_those_that_were() -> None:
    # 1/256 → 80, 1/128 → 100, so 1/64 → 140.
    assert TABLE.microseconds(_spec("int4", 64), 1, 2048, 2048) == pytest.approx(140)
    assert TABLE.microseconds(_spec("int2", 128), 1, 2048, 2048) == pytest.approx(60)
    assert math.isinf(TABLE.microseconds(_spec("w8a8"), 1, 2048, 2048))


def test_a_token_is_a_step_and_a_share_of_the_prompts() -> None:
    units = find_units([Matrix("o", "o", 0, 2048, 2048, rows_first=False)], layers=1, opset=21)
    columns = columns_of(units)
    workload = Workload(sequences=2, prompt=8, answer=4)
    table = milliseconds(units, columns, TABLE, workload)
    step = TABLE.microseconds(_spec("int4", 128), 2, 2048, 2048)
    assert table[0, columns.index("int4-b128")] == pytest.approx((step + 2 * 200 / 4) / 1000)
    assert math.isinf(table[0, columns.index("w8a8")])


def test_weights_that_stay_in_the_cache_cost_what_was_measured_there() -> None:
    resident = tuple(p.model_copy(update={"cached": True, "microseconds": p.microseconds / 2}) for p in COSTS.matmul)
    table = CostTable.of(COSTS.model_copy(update={"matmul": (*COSTS.matmul, *resident)}))
    units = find_units([Matrix("o", "o", 0, 2048, 2048, rows_first=False)], layers=1, opset=21)
    columns = columns_of(units)
    place = columns.index("int4-b128")
    streamed, cached = (
        milliseconds(units, columns, table, Workload(prompt=0, cached=cached))[0, place] for cached in (False, True)
    )
    assert cached == pytest.approx(streamed / 2)


def test_the_head_reads_only_the_last_token_of_a_prompt_and_a_lookup_is_free() -> None:
    head = Matrix("head", "lm_head", None, 2048, 2048, rows_first=False)
    table = Matrix("embed", "embed", None, 2048, 2048, rows_first=True, multiplies=False, looks_up=True)
    units = find_units([table, head], layers=1, opset=21)
    columns = columns_of(units)
    times = milliseconds(units, columns, TABLE, Workload(sequences=1, prompt=512, answer=1))
    assert times[0].sum() == 0
    assert times[1, columns.index("int4-b128")] == pytest.approx((100 + 100) / 1000)


def test_attention_reads_the_cache() -> None:
    shape = Shape(
        model_type="llama",
        layers=2,
        hidden_size=64,
        vocab_size=10,
        context_length=1024,
        heads=4,
        kv_heads=2,
        head_dim=16,
    )
    # Half way through the answers: (512 + 64) tokens x 2 x 4 bytes x 2 layers x 2 heads x 16 at 20 GB/s.
    expected = 576 * 2 * 4 * 2 * 2 * 16 / 20e6
    assert attention_milliseconds(shape, TABLE, Workload(1, 512, 128)) == pytest.approx(expected)
    assert attention_milliseconds(None, TABLE, Workload()) == 0


def test_a_device_config_without_costs_is_refused() -> None:
    with pytest.raises(ArtifactError, match="no measured costs") as refusal:
        CostTable.of(Costs())
    assert "aiasst profile" in refusal.value.hint
