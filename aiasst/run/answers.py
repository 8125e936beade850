"""The answers file: JSON Lines, appended as rows finish, never a row lost or doubled. Knows no engine.

    answers.jsonl       {"id": …, "line": …, "text": …, "finish_reason": …, "usage": {…}, "seed": …}, in the order of finishing
                        (and "logprobs": [{"id": …, "text": …, "logprob": …, "top": […]}, …] where the row asked for them),
                        or {"id": …, "line": …, "error": {"message": …, "hint": …}}
    answers.jsonl.job   which prompts, model, settings and seed these answers are of; locked while a process works on them

A line is one write to a file opened for appending, so a killed process leaves whole lines and at most one torn at the
end, which is cut off when the job goes on. `line` is the row's line in the prompts file: what is there is answered.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from aiasst.artifacts.document import Document
from aiasst.artifacts.lock import try_lock
from aiasst.engine.fields import TokenReportFields, UsageFields
from aiasst.errors import ArtifactError, ResourceError
from aiasst.run.job import Job, read_job

SYNC_SECONDS = 1.0
"""A power cut costs the answers of this long at most (a killed process costs none); syncing each would cost more than it saves."""

_RW = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


class ErrorFields(Document):
    """Why there is no answer."""

    message: str
    hint: str


class AnswerLine(Document):
    """What every line of an answers file has, whatever the model answers."""

    id: str | int | None
    """None where the line was not readable enough to have one."""
    line: int
    error: ErrorFields | None = None

    def to_line(self) -> str:
        """The answer as one line of JSON, without a line break of any kind inside."""
        fields = self.model_dump(mode="json", exclude_none=True)
        error = {"error": fields.pop("error")} if self.error is not None else {}
        text = json.dumps({"id": self.id} | fields | error, ensure_ascii=False)
        # Legal in JSON, but some readers split lines at them.
        for character in "\x85\u2028\u2029":
            text = text.replace(character, f"\\u{ord(character):04x}")
        return text + "\n"


class Answer(AnswerLine):
    """One line of the answers of a model that writes; `text` or `error`."""

    text: str | None = None
    finish_reason: Literal["stop", "length", "cancelled", "deadline"] | None = None
    usage: UsageFields | None = None
    seed: int | None = None
    logprobs: tuple[TokenReportFields, ...] | None = None
    """Where the row asked for them: one entry a token."""


@dataclass
class Done:
    """Which lines of the prompts file are answered already; `errors` of them with an error."""

    lines: bytearray
    rows: int = 0
    errors: int = 0

    def add(self, answer: AnswerLine) -> None:
        """Count one answer that is in the file."""
        self.lines[answer.line] = 1
        self.rows += 1
        self.errors += answer.error is not None


class AnswersFile:
    """An answers file that this process alone may append to."""

    def __init__(self, path: Path, descriptor: int, job: Job, done: Done) -> None:
        self.path = path
        self.job = job
        """As recorded: its seed holds, also where this command named none."""
        self.done = done
        self._descriptor = descriptor
        self._synced = time.monotonic()

    def append(self, answer: AnswerLine) -> None:
        """Append one line.

        Raises:
            ResourceError: the disk is full or failed; what was there before is whole.
        """
        data = answer.to_line().encode("utf-8")
        end = os.fstat(self._descriptor).st_size
        try:
            # A nearly full disk takes a part and refuses the rest.
            while data:
                data = data[os.write(self._descriptor, data) :]
            self._sync_sometimes()
        except OSError as error:
            os.ftruncate(self._descriptor, end)
            raise ResourceError(
                f"{self.path} cannot be continued: {error.strerror}; the {self.done.rows} answers in it are whole",
                "free some space, then give the same command again: it goes on from there",
            ) from error
        self.done.add(answer)

    def _sync_sometimes(self) -> None:
        if time.monotonic() - self._synced >= SYNC_SECONDS:
            os.fsync(self._descriptor)
            self._synced = time.monotonic()


@dataclass(frozen=True)
class AnswersStream:
    """Answers that go somewhere line by line and cannot be continued."""

    job: Job
    done: Done
    emit: Callable[[str], None]

    def append(self, answer: AnswerLine) -> None:
        """Pass one line on."""
        self.emit(answer.to_line())
        self.done.add(answer)


@contextmanager
def open_answers(
    path: Path, job: Job, *, lines: int, seed_given: bool, restart: bool = False, kind: type[AnswerLine] = Answer
) -> Iterator[AnswersFile]:
    """Begin `job`, or go on with it where `path` has answers of the same one already.

    What fails before its first answer leaves no files behind.

    Args:
        path: the answers file; its folder is made.
        job: what is to be done, with a seed.
        lines: of the prompts file.
        seed_given: the seed of `job` was asked for; if not, that of the earlier beginning holds.
        restart: throw the earlier answers of a job away.
        kind: what a line of the file is.

    Raises:
        ArtifactError: another process works on it, it belongs to another job or to none, or it is damaged.
        ResourceError: the place cannot be written.
    """
    _refuse_foreign(path)
    began_here = not path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        job_descriptor = os.open(job_path(path), _RW, 0o666)
    except OSError as error:
        raise ResourceError(f"may not write {path}: {error.strerror}", "choose another place with -o") from error
    descriptor, left_behind = None, False
    try:
        if not try_lock(job_descriptor):
            raise ArtifactError(f"another process is working on {path}", "wait until it ends, or choose another -o")
        descriptor = os.open(path, _RW | os.O_APPEND, 0o666)
        if restart:
            os.ftruncate(descriptor, 0)
        if os.fstat(descriptor).st_size:
            job = read_job(job_descriptor, path).continued_by(job, path, seed_given=seed_given)
        done = _recover(path, descriptor, lines, kind)
        job.write(job_descriptor)
        yield AnswersFile(path, descriptor, job, done)
        os.fsync(descriptor)
    except BaseException:
        left_behind = began_here and descriptor is not None and not os.fstat(descriptor).st_size
        raise
    finally:
        if descriptor is not None:
            os.close(descriptor)
        os.close(job_descriptor)
        if left_behind:
            path.unlink()
            job_path(path).unlink()


def job_path(answers: Path) -> Path:
    """The file beside `answers` that says what they are answers of."""
    return answers.with_name(answers.name + ".job")


def _refuse_foreign(path: Path) -> None:
    if path.is_dir():
        raise ArtifactError(f"{path} is a folder", "name a file with -o")
    if path.exists() and path.stat().st_size and not job_path(path).exists():
        raise ArtifactError(
            f"{path} exists and {job_path(path).name} does not, so it cannot be continued",
            "choose another file with -o, or move this one away",
        )


def _recover(path: Path, descriptor: int, lines: int, kind: type[AnswerLine]) -> Done:
    """What is answered already; a torn last line is cut off."""
    done, whole = Done(bytearray(lines + 1)), 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            done.add(_parse(path, number, line, lines, kind))
            whole += len(line)
    os.ftruncate(descriptor, whole)
    return done


def _parse(path: Path, number: int, line: bytes, lines: int, kind: type[AnswerLine]) -> AnswerLine:
    try:
        answer: AnswerLine | None = kind.parse(json.loads(line), f"line {number} of {path}")
    except ValueError:
        answer = None
    if answer is None or not 1 <= answer.line <= lines:
        raise ArtifactError(f"line {number} of {path} is damaged", "take the line out, or start over with --restart")
    return answer
