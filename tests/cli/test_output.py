"""What is printed where, in a terminal and in a pipe."""

from __future__ import annotations

import pytest

from aiasst.cli import output
from aiasst.progress import Progress


def test_progress_in_a_pipe_is_two_lines_a_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with output.progress() as report:
        for done in range(4):
            report(Progress("export", done, 3, f"layer {done}"))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == ["export … layer 0", "export done: layer 3"]


def test_a_long_stage_in_a_pipe_has_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    times = iter(range(0, 1000, 4))
    report = output._line_reporter(clock=lambda: float(next(times)))
    for done in range(20):
        report(Progress("answer", done, 20, f"{done} rows"))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "answer … 0 rows"
    assert 1 < len(lines) < 6
    assert lines[1].startswith("answer ") and "%: " in lines[1]


def test_quiet_progress_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with output.progress(quiet=True) as report:
        report(Progress("export", 1, 1))
    assert capsys.readouterr() == ("", "")


def test_table_cells_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    output.table("sizes", ("name", "bytes"), [("[bold]x[/]", 12)], right=("bytes",))
    assert "[bold]x[/]" in capsys.readouterr().out
