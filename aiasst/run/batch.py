"""Rows through the engine, several at once: each is pulled when there is room for it. Knows no files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from aiasst.engine.fields import TokenReportFields, UsageFields
from aiasst.engine.text import TextEvent, TextRequest, TokenReport
from aiasst.errors import AiasstError, ArtifactError, PromptError
from aiasst.progress import Progress, ProgressFn, silent
from aiasst.run.answers import Answer, ErrorFields
from aiasst.run.prompts import BadRow, Row

REPORT_SECONDS = 0.2


class Answerer(Protocol):
    """What a batch needs of an engine; `TextEngine` is the real one."""

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do."""

    @property
    def free_slots(self) -> int:
        """Requests that could begin now."""

    def submit(self, request: TextRequest) -> None:
        """Take a request, or raise PromptError."""

    def step(self) -> Sequence[TextEvent]:
        """Compute a little."""


@dataclass
class Meter:
    """Counts rows and tokens, and reports them now and then."""

    total: int
    earlier: int = 0
    progress: ProgressFn = silent
    rows: int = 0
    under_way: float = 0.0
    """Rows that are being answered, each as the share of its max_tokens that it has: the least that is done of them."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    began: float = field(default_factory=time.monotonic)
    _reported: float = 0.0

    @property
    def seconds(self) -> float:
        """Since the first row."""
        return time.monotonic() - self.began

    @property
    def tokens_per_second(self) -> float:
        """Completion tokens of all rows together."""
        return self.completion_tokens / max(self.seconds, 1e-9)

    def report(self, *, now: bool = False) -> None:
        """Tell how far it is, unless that was told a moment ago."""
        if now or time.monotonic() - self._reported >= REPORT_SECONDS:
            self._reported = time.monotonic()
            done = self.earlier + self.rows
            note = f"{done}/{self.total} rows, {self.tokens_per_second:.1f} tok/s"
            self.progress(Progress("answer", done + self.under_way, self.total, note if self.completion_tokens else ""))


@dataclass
class _Open:
    """A row under way."""

    row: Row
    pieces: list[str] = field(default_factory=list)
    reports: list[TokenReport] = field(default_factory=list)

    @property
    def share(self) -> float:
        return min(1.0, len(self.pieces) / self.row.request.sampling.max_tokens)


def answer_rows(engine: Answerer, rows: Iterable[Row | BadRow], write: Callable[[Answer], None], meter: Meter) -> None:
    """Answer every row; `write` gets each answer as it is finished, a bad row's at once.

    Raises:
        ArtifactError, ResourceError: the model or the disk failed; what was written is whole.
    """
    under_way: dict[str, _Open] = {}
    source = iter(rows)

    def finish(answer: Answer) -> None:
        write(answer)
        meter.rows += 1

    meter.report(now=True)
    while True:
        under_way |= {row.request.id: _Open(row) for row in _fill(engine, source, finish)}
        if not under_way:
            break
        for event in engine.step():
            entry = under_way[event.request_id]
            entry.pieces.append(event.text)
            entry.reports.extend(event.tokens)
            meter.completion_tokens += 1
            if event.finished is not None:
                del under_way[event.request_id]
                _count(meter, event, len(entry.pieces))
                finish(_answer(entry, event))
        meter.under_way = sum(entry.share for entry in under_way.values())
        meter.report()
    meter.report(now=True)


def _fill(engine: Answerer, source: Iterator[Row | BadRow], finish: Callable[[Answer], None]) -> Iterator[Row]:
    """Submit rows while there is room, and give those that were taken."""
    while engine.free_slots > 0 and (row := next(source, None)) is not None:
        refusal = row.error if isinstance(row, BadRow) else _submit(engine, row)
        if refusal is None and isinstance(row, Row):
            yield row
        elif refusal is not None:
            error = ErrorFields(message=refusal.message, hint=refusal.hint)
            finish(Answer(id=row.id, line=row.line, error=error))


def _submit(engine: Answerer, row: Row) -> AiasstError | None:
    try:
        engine.submit(row.request)
    except (PromptError, ArtifactError) as error:  # ArtifactError: the chat template fails on these messages
        return error
    return None


def _count(meter: Meter, event: TextEvent, pieces: int) -> None:
    """Exchange the estimate (a token a piece) for what the engine counted."""
    if event.usage is not None:
        meter.completion_tokens += event.usage.completion_tokens - pieces
        meter.prompt_tokens += event.usage.prompt_tokens
        meter.cached_tokens += event.usage.cached_tokens
        meter.drafted_tokens += event.usage.drafted_tokens
        meter.accepted_tokens += event.usage.accepted_tokens


def _answer(entry: _Open, last: TextEvent) -> Answer:
    usage = last.usage
    return Answer(
        id=entry.row.id,
        line=entry.row.line,
        text="".join(entry.pieces),
        finish_reason=last.finished,
        usage=None if usage is None else UsageFields.of(usage),
        seed=entry.row.request.sampling.seed,
        logprobs=None
        if entry.row.request.sampling.logprobs is None
        else tuple(map(TokenReportFields.of, entry.reports)),
    )
