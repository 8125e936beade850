"""Where the service's log goes, without ever holding it up: a bounded queue, one writing thread, lines as text or JSON.

What logs is on the event loop, which must not wait for a disk; so lines go through a queue to a thread. A disk that is full, a file
that was taken away, a reader that stopped: lines are lost, counted, and reported once writing works again, and the service goes on.
Keys that are known never appear in a line, whoever logs them. Knows no request.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import stat
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from logging.handlers import QueueHandler
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiasst.errors import UsageError
from aiasst.serve.settings import LogSettings

LINES = 10_000
"""That wait for the writing thread; what comes beyond them is lost."""
STOP_SECONDS = 2.0
"""What the writing thread gets to write what is left; a pipe that nobody reads must not keep the service from ending."""
LOGGERS = ("aiasst", "uvicorn", "py.warnings")
"""Whose lines are ours to write."""
FIELDS = "fields"
"""The attribute of a record that has more than its message: `log.info("…", extra={FIELDS: {…}})`."""
SAID = "said"
"""The attribute that names the fields which the message has too: lines for people leave them out."""


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and what the record has in its fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        told: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=False, default=str)


class TextLines(logging.Formatter):
    """Time, level and message, then the fields as name=value; one line whatever they hold, tracebacks apart."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        said = getattr(record, SAID, ())
        told = " ".join(f"{name}={_plain(value)}" for name, value in _fields(record).items() if name not in said)
        line = f"{_time(record)} {record.levelname.lower():7} {_one_line(record.getMessage())}"
        line = f"{line}  {told}" if told else line
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class Writer(logging.Handler):
    """Lines to a file descriptor, each with one call; a file is renamed when it is full, and opened anew when it was taken away."""

    def __init__(self, settings: LogSettings, secrets: Iterable[str] = ()) -> None:
        """`secrets` are never written.

        Raises:
            UsageError: the file cannot be written.
        """
        super().__init__()
        self.setFormatter(JsonLines() if settings.format == "json" else TextLines())
        self.lost = 0
        """Lines that could not be written."""
        self._untold = 0
        self._counting = threading.Lock()
        self._path, self._most_bytes, self._kept = settings.file, settings.most_bytes, settings.kept
        self._secrets = _any_of(secrets)
        self._torn = False
        self._descriptor = -1
        try:
            self._open()
        except OSError as error:
            raise UsageError(
                f"the log cannot be written to {self._path}: {error.strerror}", "name another file with --log-file"
            ) from error

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line; never raises for want of disk."""
        try:
            line = self.format(record)
        except (
            TypeError,
            ValueError,
        ) as error:  # arguments that do not fit their message: a mistake of whoever logged it
            line = f"{_time(record)} a line of {record.name} could not be written: {error}"
        if self._secrets is not None:
            line = self._secrets.sub("***", line)
        data = (line + "\n").encode(errors="backslashreplace")
        try:
            self._reopen_if_moved(len(data))
            self._tell_lost(record)
            self._write(data)
        except OSError:
            self.missed(1)

    def missed(self, lines: int) -> None:
        """Note lines that never came here."""
        with self._counting:
            self.lost += lines
            self._untold += lines

    def close(self) -> None:
        """Let go of the file."""
        if self._path is not None and self._descriptor >= 0:
            with suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = -1
        super().close()

    def _tell_lost(self, record: logging.LogRecord) -> None:
        """One line about those that were lost before this one, once writing works again."""
        if not self._untold:
            return
        untold = self._untold
        told = logging.makeLogRecord({**record.__dict__, "msg": f"{untold} lines of the log were lost", "args": ()})
        told.levelname, told.name, told.exc_info = "WARNING", __name__, None
        setattr(told, FIELDS, {})
        self._write((self.format(told) + "\n").encode())
        with self._counting:
            self._untold -= untold

    def _write(self, data: bytes) -> None:
        # What a full disk left of the line before must not run into this one.
        data = b"\n" + data if self._torn else data
        while data:
            data = data[os.write(self._descriptor, data) :]
            self._torn = bool(data)

    def _open(self) -> None:
        if self._path is None:
            self._descriptor = sys.stderr.fileno()
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Nobody but the owner and the group reads who asked what, and when.
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)

    def _reopen_if_moved(self, more: int) -> None:
        """Make room in a full file, and open the file of our name where another program has renamed ours (logrotate)."""
        if self._path is None:
            return
        if self._descriptor < 0:
            self._open()
        ours = os.fstat(self._descriptor)
        if not stat.S_ISREG(ours.st_mode):
            return
        if self._kept and ours.st_size and ours.st_size + more > self._most_bytes:
            self._rename()
        elif _is_same(self._path, ours):
            return
        os.close(self._descriptor)
        self._descriptor = -1
        self._open()

    def _rename(self) -> None:
        assert self._path is not None
        for number in range(self._kept, 0, -1):
            older = self._path if number == 1 else _numbered(self._path, number - 1)
            # Where it cannot be renamed it goes on growing: a folder that is read-only now is no reason to lose lines.
            with suppress(OSError):
                older.replace(_numbered(self._path, number))


class Logs:
    """The log of the service while it runs: `with Logs(settings.logs, secrets=settings.keys.values()) as logs: …`."""

    def __init__(self, settings: LogSettings, secrets: Iterable[str] = ()) -> None:
        """See `Writer`; nothing is written before it is entered."""
        self._level = settings.level.upper()
        self._queue: queue.Queue[logging.LogRecord | None] = queue.Queue(LINES)
        self._writer = Writer(settings, secrets)
        self._handler = _ToQueue(self._queue, self._writer)
        self._thread = threading.Thread(target=self._drain, name="log", daemon=True)
        self._before: list[tuple[logging.Logger, int, bool, list[logging.Handler]]] = []

    @property
    def lost(self) -> int:
        """Lines that could not be written, or that waited in vain."""
        return self._writer.lost

    def __enter__(self) -> Self:
        for name in LOGGERS:
            logger = logging.getLogger(name)
            self._before.append((logger, logger.level, logger.propagate, logger.handlers[:]))
            logger.handlers[:] = [self._handler]
            logger.setLevel(self._level)
            logger.propagate = False
        logging.captureWarnings(True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        logging.captureWarnings(False)
        for logger, level, propagate, handlers in self._before:
            logger.handlers[:] = handlers
            logger.setLevel(level)
            logger.propagate = propagate
        with suppress(queue.Full):
            self._queue.put(None, timeout=STOP_SECONDS)
        self._thread.join(STOP_SECONDS)
        if not self._thread.is_alive():
            self._writer.close()

    def _drain(self) -> None:
        while (record := self._queue.get()) is not None:
            self._writer.handle(record)


class _ToQueue(QueueHandler):
    """Never waits: what finds no room is lost, and counted."""

    def __init__(self, lines: queue.Queue[logging.LogRecord | None], writer: Writer) -> None:
        super().__init__(lines)
        self._writer = writer

    def enqueue(self, record: logging.LogRecord) -> None:
        """Hand a record over."""
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self._writer.missed(1)

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """The record as it is: the other end is a thread, and writes the line there."""
        return record


def _time(record: logging.LogRecord) -> str:
    """RFC 3339 in UTC, to the millisecond."""
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, FIELDS, {})
    return fields


def _plain(value: object) -> str:
    """A value without quotes where it is one word, else in JSON's; what ends a line or moves a cursor is escaped."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text if re.fullmatch(r"[\w./:+-]+", text, re.ASCII) else json.dumps(text, ensure_ascii=True)


def _one_line(text: str) -> str:
    """The text with what ends a line or moves a cursor escaped: no caller forges a line."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def _any_of(secrets: Iterable[str]) -> re.Pattern[str] | None:
    told = sorted(filter(None, set(secrets)), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, told))) if told else None


def _is_same(path: Path, ours: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.stat(), ours)
    except FileNotFoundError:
        return False


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")
