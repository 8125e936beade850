"""Encoding a file of texts: rows in, vectors or labels out, resumable. Composes the parts; computes nothing.

    texts.py     the file of texts
    job.py       what a job is
    answers.py   the answers file: appended, recovered, locked

Rows are taken a window at a time: its texts run together by length, and its lines are written in the order of the file. So
the answers stand in that order, and a killed process loses one window of work and no row.

Vectors that go to a .npy file are written there before the lines that tell of them (`vector`: the row in that file), and what
was written behind the last told one is cut off when the job goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from aiasst.artifacts.document import Document
from aiasst.artifacts.model_folder import ModelFolder
from aiasst.artifacts.vectors import VectorsFile, open_vectors
from aiasst.engine.encode import Encoder, Prepared
from aiasst.engine.heads import Fills, Label, Labels, Relevance, Result, TokenLabel, Vector
from aiasst.errors import ArtifactError, PromptError, UsageError
from aiasst.progress import Progress, ProgressFn, silent
from aiasst.run.answers import AnswerLine, AnswersFile, AnswersStream, Done, ErrorFields, open_answers
from aiasst.run.job import Job, Outputs
from aiasst.run.prompts import BadRow, Prompts, RowId, open_prompts
from aiasst.run.texts import TextReader, TextRow

WINDOW_ROWS = 512
WINDOW_CHARACTERS = 200_000
"""A window ends at either: enough texts that some have the same length, and seconds of work on a slow machine."""
VECTORS_SUFFIX = ".npy"

Open = Callable[[], Encoder]


class LabelFields(Document):
    """A name and its score."""

    label: str
    score: float


class TokenLabelFields(LabelFields):
    """The label of one token: `text` from character `start` up to `end`."""

    start: int
    end: int
    text: str


class Encoded(AnswerLine):
    """One line of what an encoder answers; which key it has follows from the model's task."""

    row: int | None = None
    """Of the .npy file, from 0."""
    vector: tuple[float, ...] | None = None
    labels: tuple[LabelFields, ...] | None = None
    tokens: tuple[TokenLabelFields, ...] | None = None
    masks: tuple[tuple[LabelFields, ...], ...] | None = None
    score: float | None = None
    cut_from: int | None = None
    """Tokens of the text, where the model did not read all of them."""

    def to_line(self) -> str:
        """As in AnswerLine; the numbers of a vector with the nine digits that give the same float32 back."""
        if self.vector is None:
            return super().to_line()
        plain = self.model_copy(update={"vector": None})
        numbers = ", ".join([format(value, ".9g") for value in self.vector])
        return f'{AnswerLine.to_line(plain)[:-2]}, "vector": [{numbers}]}}\n'


@dataclass(frozen=True)
class EncodeSummary:
    """What came of a job."""

    rows: int
    """Of the file of texts."""
    earlier: int
    """Encoded before this time."""
    errors: int
    """Rows that have an error instead of an answer, earlier ones too."""
    cut: int
    """Texts that were longer than the model reads; this and what follows: of this time."""
    tokens: int
    seconds: float
    rows_per_second: float


@dataclass
class _Meter:
    """Counts what is done."""

    total: int
    earlier: int
    progress: ProgressFn
    rows: int = 0
    tokens: int = 0
    cut: int = 0
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def report(self) -> None:
        done, speed = self.earlier + self.rows, self.rows / max(self.seconds, 1e-9)
        self.progress(Progress("encode", done, self.total, f"{done}/{self.total} rows, {speed:.1f} rows/s"))


def encode(
    folder: ModelFolder,
    texts: Path | BinaryIO,
    answers: Path | Callable[[str], None],
    *,
    open_encoder: Open,
    top: int | None = None,
    restart: bool = False,
    progress: ProgressFn = silent,
) -> EncodeSummary:
    """Encode every row of a file of texts.

    Args:
        folder: the model.
        texts: a file of rows (see `texts.py`), or a stream that is read to its end first.
        answers: a .jsonl file, or a .npy file for vectors (its ids in .ids.jsonl beside it); either is continued where it has
            answers of this job. Or what is called with every line.
        open_encoder: opens the model, once there is something to do.
        top: labels or fills of a text that are told; None: all labels, 5 fills.
        restart: throw earlier answers away.
        progress: told of rows.

    Raises:
        ArtifactError: the folder or a file is missing or wrong, or the answers belong to another job.
        UsageError: a .npy file for a model that makes no vectors.
        ResourceError: memory or disk is not enough; the job can be continued.
    """
    numbers = answers if isinstance(answers, Path) and answers.suffix == VECTORS_SUFFIX else None
    lines = answers if numbers is None else numbers.with_suffix(".ids.jsonl")
    if numbers is not None and folder.manifest.task not in ("feature-extraction", "sentence-similarity"):
        raise UsageError(
            f"{folder.path} is for {folder.manifest.task}, it makes no vectors", "name a .jsonl file with -o"
        )
    with open_prompts(texts) as source:
        outputs = Outputs(top=top, vectors=None if numbers is None else numbers.name)
        job = Job.of_encoder(folder, prompts_sha256=source.sha256, rows=source.rows, outputs=outputs)
        if isinstance(texts, Path) and isinstance(lines, Path) and lines.exists() and lines.samefile(texts):
            raise ArtifactError(f"{lines} is the file of texts", "name another file with -o")
        _refuse_foreign(numbers, lines)
        with _opened(lines, job, source, restart=restart) as sink:
            meter = _Meter(source.rows, sink.done.rows, progress)
            if sink.done.rows < source.rows:  # else the model need not be opened
                progress(Progress("load", 0, 1, folder.path.name))
                encoder = open_encoder()
                progress(Progress("load", 1, 1, folder.path.name))
                meter.began = time.monotonic()
                with _vectors(numbers, sink.done.rows - sink.done.errors) as file:
                    for window in _windows(_left(source, sink.done)):
                        _answer(encoder, window, sink, file, meter)
                        meter.report()
            return EncodeSummary(
                rows=source.rows,
                earlier=meter.earlier,
                errors=sink.done.errors,
                cut=meter.cut,
                tokens=meter.tokens,
                seconds=meter.seconds if meter.rows else 0.0,
                rows_per_second=meter.rows / max(meter.seconds, 1e-9) if meter.rows else 0.0,
            )


def _opened(
    lines: Path | Callable[[str], None], job: Job, source: Prompts, *, restart: bool
) -> AbstractContextManager[AnswersFile | AnswersStream]:
    if not isinstance(lines, Path):
        return nullcontext(AnswersStream(job, Done(bytearray(source.lines + 1)), lines))
    return open_answers(lines, job, lines=source.lines, seed_given=True, restart=restart, kind=Encoded)


def _refuse_foreign(numbers: Path | None, lines: Path | Callable[[str], None]) -> None:
    """A .npy file that is there without its ids is somebody else's."""
    if numbers is not None and numbers.exists() and isinstance(lines, Path) and not lines.exists():
        raise ArtifactError(
            f"{numbers} exists and {lines.name} does not, so it cannot be continued",
            "choose another file with -o, or move this one away",
        )


def _vectors(numbers: Path | None, rows: int) -> AbstractContextManager[VectorsFile | None]:
    return nullcontext(None) if numbers is None else open_vectors(numbers, rows)


def _left(source: Prompts, done: Done) -> Iterator[TextRow | BadRow]:
    """The rows that have no answer yet; answered ones are read too, since their ids count."""
    reader = TextReader()
    for number, text in source:
        row = reader.read(number, text)
        if not done.lines[number]:
            yield row


def _windows(rows: Iterable[TextRow | BadRow]) -> Iterator[list[TextRow | BadRow]]:
    window: list[TextRow | BadRow] = []
    characters = 0
    for row in rows:
        window.append(row)
        if isinstance(row, TextRow):
            characters += len(row.input.text) + len(row.input.pair or "")
        if len(window) >= WINDOW_ROWS or characters >= WINDOW_CHARACTERS:
            yield window
            window, characters = [], 0
    if window:
        yield window


def _answer(
    encoder: Encoder,
    window: Sequence[TextRow | BadRow],
    sink: AnswersFile | AnswersStream,
    file: VectorsFile | None,
    meter: _Meter,
) -> None:
    """Run the texts of a window and write its lines, in the order of the window."""
    texts = [row for row in window if isinstance(row, TextRow)]
    made = dict(zip((row.line for row in texts), encoder.prepare([row.input for row in texts]), strict=True))
    ready = {line: each for line, each in made.items() if isinstance(each, Prepared)}
    results = dict(zip(ready, encoder.answer(list(ready.values())), strict=True))
    row_of = _stored(results, file)
    for row in window:
        refused = row.error if isinstance(row, BadRow) else made[row.line]
        if isinstance(refused, PromptError):
            error = ErrorFields(message=refused.message, hint=refused.hint)
            sink.append(Encoded(id=row.id, line=row.line, error=error))
        else:
            tokens = ready[row.line].tokens
            meter.tokens += len(tokens.ids)
            meter.cut += tokens.is_cut
            cut_from = tokens.total if tokens.is_cut else None
            sink.append(_line(row.id, row.line, results[row.line], row_of.get(row.line), cut_from))
        meter.rows += 1


def _stored(results: dict[int, Result], file: VectorsFile | None) -> dict[int, int]:
    """Append the vectors to the file, where there is one; line → row of the file."""
    if file is None or not results:
        return {}
    first = file.rows
    file.append(np.stack([result.values for result in results.values() if isinstance(result, Vector)]))
    return {line: first + index for index, line in enumerate(results)}


def _line(row_id: RowId | None, line: int, result: Result, stored: int | None, cut_from: int | None) -> Encoded:
    told: dict[str, Any]
    if isinstance(result, Vector):
        told = {"vector": tuple(result.values.tolist())} if stored is None else {"row": stored}
    elif isinstance(result, Labels):
        told = {"labels": _labels(result.labels)}
    elif isinstance(result, Relevance):
        told = {"score": _rounded(result.score)}
    elif isinstance(result, Fills):
        told = {"masks": tuple(map(_labels, result.masks))}
    else:
        told = {"tokens": tuple(map(_token, result.tokens))}
    return Encoded(id=row_id, line=line, cut_from=cut_from, **told)


def _token(token: TokenLabel) -> TokenLabelFields:
    return TokenLabelFields(
        start=token.start, end=token.end, text=token.text, label=token.label, score=_rounded(token.score)
    )  # fmt: skip


def _labels(labels: Sequence[Label]) -> tuple[LabelFields, ...]:
    return tuple(LabelFields(label=each.label, score=_rounded(each.score)) for each in labels)


def _rounded(score: float) -> float:
    return round(score, 6)
