"""The picture: written whole, or refused before the work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from aiasst.bench.drawing import draw
from aiasst.bench.figures import Speed
from aiasst.bench.readings import Change, Energy, Readings, Throttling
from aiasst.bench.report import Against, Decoding, PeerDecoding, Report

SILENT = Readings(
    Energy(None, {}, "", "a test"), Change(None, None, "", "a test"), Change(None, None, "", "a test"),
    Throttling(None, (), "a test"),
)  # fmt: skip
REPORT = Report(
    model="tiny [1]", model_bytes=10**6, machine="a machine, 2 cores", provider="cpu", threads=2, onnxruntime="1",
    rounds=5, seconds=1.0, prompt_tokens=512, decode_steps=8, prefill=Speed(300, 280), ttft_ms=1800.0,
    inter_token_ms=(20.0, 21.0, 19.5, 40.0), inter_token_ms_p50=20.5, inter_token_ms_p99=39.4,
    decode=(Decoding(1, Speed(50.2, 48), 0.02), Decoding(8, Speed(180, 170), 0.03)), left_out=(16,),
    load_seconds=1.2, load_seconds_warm=0.8, peak_rss_bytes=10**9, token_bytes=8 * 10**8,
    bandwidth_bytes_per_second=4e10, bandwidth_share=0.9, cache_bytes=10**7, readings=SILENT, against=None,
)  # fmt: skip
PEER = Against(
    peer="llama.cpp", version="0.3", model="1B", model_bytes=10**6, prefill=Speed(200, 190), prefill_ratio=1.5,
    decode=(PeerDecoding(1, Speed(45, 44), 1.1), PeerDecoding(8, Speed(60, 58), 3.0)),
)  # fmt: skip


@pytest.mark.parametrize("against", [None, PEER], ids=["alone", "peer"])
def test_a_png_appears_whole(tmp_path: Path, against: Against | None) -> None:
    file = tmp_path / "speed.png"
    draw(replace(REPORT, against=against), file)
    assert file.read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["speed.png"]


def test_stalls_do_not_hide_the_rest(tmp_path: Path) -> None:
    draw(replace(REPORT, inter_token_ms=(1.0, 1.1, 900.0), inter_token_ms_p99=880.0), tmp_path / "speed.png")
