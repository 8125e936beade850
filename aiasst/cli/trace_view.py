"""How `aiasst bench` shows where steps go: a table a kind of work, and the same as a document. Computes no figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiasst.cli import output

if TYPE_CHECKING:
    from aiasst.bench.operators import Row
    from aiasst.bench.report import Part, Trace

_SMALL = 0.01
"""Rows that take less than this share of a pass are one row together."""
_COLUMNS = ("operator", "for", "calls", "ms", "share", "GB/s")


def document(trace: Trace) -> dict[str, Any]:
    """What `--json` says of a trace; the names stay."""
    return {"file": trace.file, "parts": [_part(part) for part in trace.parts]}


def _part(part: Part) -> dict[str, Any]:
    return {
        "work": part.name,
        "sequences": part.sequences,
        "tokens": part.tokens,
        "passes": part.breakdown.passes,
        "milliseconds": round(part.breakdown.milliseconds, 4),
        "times_unprofiled": round(part.slowdown, 3),
        "rows": [
            {
                "operator": row.operator,
                "role": row.role,
                "calls": round(row.calls, 2),
                "milliseconds": round(row.milliseconds, 4),
                "share": round(row.share, 4),
                "gigabytes_per_second": row.gigabytes_per_second and round(row.gigabytes_per_second, 2),
            }
            for row in part.breakdown.rows
        ],
    }


def show(trace: Trace) -> None:
    """A table a kind of work."""
    for part in trace.parts:
        output.table(_title(part), _COLUMNS, _rows(part), right=_COLUMNS[2:], caption=_caption(part))


def _title(part: Part) -> str:
    if part.name == "prefill":
        return f"\nWhere reading a prompt of {part.tokens} tokens goes"
    return f"\nWhere a decode step goes, {part.sequences} at once"


def _caption(part: Part) -> str:
    each = "prompt" if part.name == "prefill" else "step"
    return (
        f"{part.breakdown.milliseconds:.2f} ms a {each} with the profiler on, "
        f"{part.slowdown:.2f} times as long as without it; GB/s: weights read"
    )


def _rows(part: Part) -> list[list[str]]:
    operators = [row for row in part.breakdown.rows if row.calls]
    small = [row for row in operators if row.share < _SMALL]
    rows = [_cells(row) for row in operators if row.share >= _SMALL]
    if small:
        calls, time, share = (
            sum(values) for values in zip(*((r.calls, r.milliseconds, r.share) for r in small), strict=True)
        )
        rows.append([f"{len(small)} more kinds", "", f"{calls:.0f}", f"{time:.3f}", f"{share:.1%}", ""])
    return rows + [_cells(row) for row in part.breakdown.rows if not row.calls]


def _cells(row: Row) -> list[str]:
    speed = "" if row.gigabytes_per_second is None else f"{row.gigabytes_per_second:.1f}"
    calls = f"{row.calls:.0f}" if row.calls else ""
    return [row.operator, row.role, calls, f"{row.milliseconds:.3f}", f"{row.share:.1%}", speed]
