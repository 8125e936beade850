"""What ONNX Runtime is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiasst.runtime.settings import SessionSettings, products_saturate, session_options, thread_affinities


def entry(settings: SessionSettings, key: str) -> str:
    return str(session_options(settings).get_session_config_entry(key))


def test_threads_and_pinning() -> None:
    settings = SessionSettings(threads=3, affinity=(0, 2, 4))
    assert session_options(settings).intra_op_num_threads == 3
    # The first thread is the caller's own; ONNX Runtime counts cores from 1.
    assert entry(settings, "session.intra_op_thread_affinities") == "3;5"
    assert session_options(SessionSettings(affinity=(0, 1))).intra_op_num_threads == 2
    assert thread_affinities(1, (0,)) == thread_affinities(4, None) == ""
    assert thread_affinities(4, (0, 1)) == "2;1;2"


def test_threads_sleep_between_runs_where_asked() -> None:
    assert entry(SessionSettings(threads=2, rests=True), "session.force_spinning_stop") == "1"
    with pytest.raises(RuntimeError):  # not set: ONNX Runtime's own default
        entry(SessionSettings(threads=2), "session.force_spinning_stop")


def test_prepacking_is_left_out_where_asked() -> None:
    assert entry(SessionSettings(prepack=False), "session.disable_prepacking") == "1"


def test_prepacking_stays_on() -> None:
    with pytest.raises(RuntimeError):
        entry(SessionSettings(), "session.disable_prepacking")


@pytest.mark.parametrize(
    "machine,flags,saturates",
    [
        ("x86_64", "avx2 fma", True),
        ("AMD64", "avx2 avx512_vnni", False),
        ("x86_64", "avx2 avx_vnni", False),
        ("aarch64", "asimddp", False),
    ],
)
def test_products_saturate_on_x86_without_vnni(tmp_path: Path, machine: str, flags: str, saturates: bool) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"flags : {flags}\n", encoding="utf-8")
    assert products_saturate(machine, cpuinfo) is saturates


def test_an_unknown_x86_is_taken_for_one_that_saturates(tmp_path: Path) -> None:
    assert products_saturate("x86_64", tmp_path / "absent")
