"""A tiny decoder measured: figures that hold together, whatever their size."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiasst.artifacts.device import DeviceConfig
from aiasst.artifacts.model_folder import ModelFolder
from aiasst.bench import bench
from aiasst.bench.fresh import measure_fresh
from aiasst.bench.work import DECODE_PROMPT, Bench
from aiasst.errors import ArtifactError, ResourceError, UsageError
from aiasst.progress import Progress
from tests.bench.conftest import SHAPE, write_folder
from tests.runtime.graphs import CONTEXT


def under(config: DeviceConfig, ceiling: int) -> DeviceConfig:
    limit = config.decisions.memory_ceiling_bytes.model_copy(update={"value": ceiling})
    return config.model_copy(update={"decisions": config.decisions.model_copy(update={"memory_ceiling_bytes": limit})})


def test_the_report_holds_together(tiny: ModelFolder, alone: DeviceConfig) -> None:
    events: list[Progress] = []
    report = bench(tiny, alone, seconds=0.1, prompt_tokens=10_000, sequences=(3, 2), progress=events.append)
    assert report.prompt_tokens == CONTEXT - 2
    assert [one.sequences for one in report.decode] == [1, 2, 3]
    assert (report.left_out, report.threads, report.provider) == ((), 1, "cpu")
    assert report.rounds >= 3
    assert len(report.inter_token_ms) == report.rounds * report.decode_steps
    assert 0 < report.inter_token_ms_p50 <= report.inter_token_ms_p99 <= max(report.inter_token_ms)
    assert all(0 < one.speed.median <= one.speed.best and 0 < one.overhead_share < 1 for one in report.decode)
    assert report.prefill.best * report.ttft_ms / 1000 >= report.prompt_tokens * 0.999
    assert min(report.load_seconds, report.load_seconds_warm, report.bandwidth_bytes_per_second) > 0
    assert report.peak_rss_bytes > 10 * 2**20
    assert report.against is None
    assert list(dict.fromkeys(event.stage for event in events)) == ["fresh start", "warm-up", "rounds"]


def test_what_the_ceiling_has_no_room_for_is_left_out(tiny: ModelFolder, alone: DeviceConfig) -> None:
    row = 2 * SHAPE.layers * SHAPE.kv_heads * SHAPE.head_dim * 4 * CONTEXT
    taken = int(tiny.weight_bytes * 1.2) + 16 * SHAPE.vocab_size * 4
    report = bench(tiny, under(alone, taken + 2 * row + row // 2), seconds=0.1, prompt_tokens=20, sequences=(1, 2, 16))
    assert [one.sequences for one in report.decode] == [1, 2]
    assert report.left_out == (16,)


def test_work_is_counted_in_tokens(tiny: ModelFolder, alone: DeviceConfig) -> None:
    work = Bench(tiny, alone, slots=4)
    read, written = work.prefill(40, seed=1), work.decode(4, 9, seed=1)
    assert (read.tokens, written.tokens, len(written.steps)) == (40, 36, 9)
    for sample in (read, written):
        assert all(0 < inside < wall for inside, wall in zip(sample.inside, sample.steps, strict=True))
    assert not work.engine.busy
    stats = work.engine.stats
    assert (stats.prefill_tokens, stats.cached_tokens) == (40 + 4 * DECODE_PROMPT, 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"seconds": 0}, "no time"), ({"prompt_tokens": 0}, "0 tokens"), ({"sequences": (0,)}, "0 sequences")],
)
def test_numbers_that_make_no_sense(tiny: ModelFolder, options: dict[str, int], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        bench(tiny, **options)


def test_a_context_that_is_too_short_says_what_is_the_least(tmp_path: Path, alone: DeviceConfig) -> None:
    folder = write_folder(tmp_path / "short", SHAPE.model_copy(update={"context_length": 24}))
    with pytest.raises(UsageError, match="24 tokens is too short"):
        bench(folder, alone, seconds=0.1)


def test_a_folder_that_writes_no_text(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="writes no text"):
        bench(write_folder(tmp_path / "foreign", None), seconds=0.1)


def test_the_last_words_of_a_process_that_failed(tiny: ModelFolder, alone: DeviceConfig) -> None:
    with pytest.raises(ResourceError, match=r"new process: .*memory ceiling"):
        measure_fresh(tiny, under(alone, 1), 8)
