"""The only place that prints: data on stdout, talk on stderr. Knows how things look, not what they mean."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from aiasst.errors import AiasstError
from aiasst.progress import Progress, ProgressFn, silent
from aiasst.sizes import human_bytes as human_bytes

if TYPE_CHECKING:
    from rich.console import Console

_PIPE_WIDTH = 10_000
"""Columns of a table that nobody looks at: enough for every name, so that `grep` finds it."""

LINE_SECONDS = 30.0
"""Between the lines of a long stage, where stderr is no terminal."""


def _console(*, stderr: bool, soft_wrap: bool = True) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=soft_wrap)


def is_dialogue() -> bool:
    """Whether a person types (stdin is a terminal); where it is not, a pipe or a file speaks."""
    return sys.stdin.isatty()


def is_terminal() -> bool:
    """Whether a person reads what is on stdout."""
    return sys.stdout.isatty()


def data(text: str, *, end: str = "\n") -> None:
    """Print `text` on stdout as it is."""
    print(text, end=end, flush=True)


def document(value: Any) -> None:
    """Print `value` on stdout as one JSON document."""
    print(json.dumps(value, indent=2, ensure_ascii=False), flush=True)


def note(text: str, *, end: str = "\n") -> None:
    """A remark to the person at the terminal (stderr); rich markup is allowed."""
    # Lines break between words where a person reads them, and nowhere else.
    _console(stderr=True).print(text, end=end, soft_wrap=not sys.stderr.isatty())


def error(failure: AiasstError) -> None:
    """What is wrong and what to do next (stderr)."""
    from rich.markup import escape

    console = _console(stderr=True)
    console.print(f"[bold red]error:[/] {escape(failure.message)}")
    if failure.hint:
        console.print(f"[bold]  try:[/] {escape(failure.hint)}")


def facts(rows: Sequence[tuple[str, str]]) -> None:
    """Names and what belongs to them, as talk (stderr)."""
    from rich.markup import escape
    from rich.table import Table

    grid = Table.grid(padding=(0, 2, 0, 2))
    for name, text in rows:
        grid.add_row(f"[bold]{escape(name)}[/]", escape(text))
    _console(stderr=True).print(grid)


def section(title: str, rows: Sequence[Sequence[str]]) -> None:
    """Print rows under a title on stdout: a name, then one or more texts, each of which wraps under itself."""
    from rich.markup import escape
    from rich.table import Table

    grid = Table(
        title=title, title_justify="left", title_style="bold", box=None, show_header=False, padding=(0, 2, 0, 1)
    )
    grid.add_column(style="cyan", no_wrap=True)
    for row in rows:
        grid.add_row(*(escape(cell) for cell in row))
    _console(stderr=False, soft_wrap=False).print(grid)


def picture(title: str, lines: Sequence[str]) -> None:
    """Print lines of rich markup under a title on stdout; colours only where a terminal shows them. Nothing where there is none."""
    if not lines:
        return
    console = _console(stderr=False)
    console.print(f"[bold]{plain(title)}[/]", "", *lines, "", sep="\n")


def paced(seconds: float) -> str:
    """Pauses between steps, in words."""
    return f"{seconds:.1f} s of pauses kept the limits of the device config"


def plain(value: object) -> str:
    """`value` as text that `note` shows as it is, whatever brackets it has."""
    from rich.markup import escape

    return escape(str(value))


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    right: Sequence[str] = (),
    caption: str = "",
) -> None:
    """Print a table on stdout; the columns named in `right` are aligned to the right. In a pipe no cell is folded."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    grid = Table(
        title=title, title_justify="left", caption=caption or None, caption_justify="left", box=box.SIMPLE_HEAD
    )
    for column in columns:
        grid.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(escape(str(cell)) for cell in row))
    console = _console(stderr=False)
    if not sys.stdout.isatty():
        console.width = _PIPE_WIDTH
    console.print(grid)


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[ProgressFn]:
    """A callback that shows a bar a stage on stderr: share done, time passed, time left; plain lines where it is no terminal."""
    if quiet:
        yield silent
        return
    if not sys.stderr.isatty():
        yield _line_reporter()
        return
    from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:<12}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), TextColumn("[dim]{task.fields[note]}"),
    )  # fmt: skip
    with Bars(*columns, console=_console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def show(event: Progress) -> None:
            if event.stage not in tasks:
                tasks[event.stage] = bars.add_task(event.stage, total=event.total or None, note="")
            bars.update(tasks[event.stage], completed=event.done, total=event.total or None, note=event.note)

        yield show


def _line_reporter(clock: Callable[[], float] = time.monotonic) -> Callable[[Progress], None]:
    """One line a stage when it begins or starts over, one when it is done, one a while between: what a log file wants."""
    told: dict[str, float] = {}
    ended: set[str] = set()

    def show(event: Progress) -> None:
        begins = event.stage not in told
        # A stage that starts over says why (one exporter failed, the next tries).
        if begins or (not event.done and event.note):
            told[event.stage] = clock()
            print(f"{event.stage} …{f' {event.note}' if event.note else ''}", file=sys.stderr, flush=True)
        note = f": {event.note}" if event.note else ""
        if event.total and event.done >= event.total and event.stage not in ended:
            ended.add(event.stage)
            print(f"{event.stage} done{note}", file=sys.stderr, flush=True)
        elif event.total and event.stage not in ended and clock() - told[event.stage] >= LINE_SECONDS:
            told[event.stage] = clock()
            print(f"{event.stage} {event.done / event.total:.0%}{note}", file=sys.stderr, flush=True)

    return show


@contextmanager
def waiting(text: str, *, quiet: bool = False) -> Iterator[None]:
    """A spinner with `text` on stderr while the block runs, gone afterwards; nothing where it is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield
        return
    with _console(stderr=True).status(plain(text)):
        yield


def terminal_width() -> int:
    """Columns of the terminal that shows stdout; without end where it is none."""
    return shutil.get_terminal_size().columns if is_terminal() else sys.maxsize
