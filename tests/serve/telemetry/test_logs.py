import contextlib
import io
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aiasst.errors import UsageError
from aiasst.serve.settings import LogSettings
from aiasst.serve.telemetry import logs as module
from aiasst.serve.telemetry.logs import FIELDS, Logs, Writer

LOG = logging.getLogger("aiasst.serve.test")


def record(message: str, **fields: object) -> logging.LogRecord:
    return LOG.makeRecord(LOG.name, logging.INFO, "", 0, message, (), None, extra={FIELDS: fields})


@contextlib.contextmanager
def writing(file: Path, **settings: object) -> Iterator[Writer]:
    writer = Writer(LogSettings(file=file, **settings))  # type: ignore[arg-type]
    try:
        yield writer
    finally:
        writer.close()


def test_a_line_of_json_is_one_object_whatever_it_holds(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with Logs(LogSettings(format="json", file=file)):
        LOG.info("told\nyou %d", 1, extra={FIELDS: {"path": '/a"\n\x1b[31m', "seconds": 0.25, "odd": "\ud800"}})
        with contextlib.suppress(ZeroDivisionError):
            try:
                _ = 1 / 0
            except ZeroDivisionError:
                LOG.exception("broke")
                raise
    first, second = [json.loads(line) for line in file.read_text().splitlines()]
    assert first["message"] == "told\nyou 1" and first["level"] == "info" and first["logger"] == LOG.name
    assert first["path"] == '/a"\n\x1b[31m' and first["seconds"] == 0.25
    assert first["time"].endswith("Z") and len(first["time"]) == 24
    assert "ZeroDivisionError" in second["exception"]


def test_a_line_of_text_cannot_be_forged(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with Logs(LogSettings(file=file)):
        LOG.info("GET /\n2026 error \x1b[2J\u2028x", extra={FIELDS: {"model": "a b\nc", "status": 200}})
    (line,) = file.read_text().splitlines()
    assert "\x1b" not in line and line.endswith('model="a b\\nc" status=200')


def test_keys_are_never_written_whoever_logs_them(tmp_path: Path) -> None:
    for form in ("text", "json"):
        file = tmp_path / form
        with Logs(LogSettings(format=form, file=file), secrets=["sk-first", "sk-first-and-longer", ""]):  # type: ignore[arg-type]
            LOG.warning("asked with sk-first-and-longer", extra={FIELDS: {"path": "/?key=sk-first"}})
            logging.getLogger("uvicorn.error").info("header: %s", "sk-first")
        assert "sk-" not in file.read_text() and file.read_text().count("***") == 3


def test_a_file_that_is_full_is_renamed_and_the_oldest_goes(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "log"
    with writing(file, most_bytes=1000, kept=2) as writer:
        for number in range(60):
            writer.emit(record(f"line {number:02d} " + "x" * 60))
    assert sorted(path.name for path in file.parent.iterdir()) == ["log", "log.1", "log.2"]
    kept = "".join((file.parent / name).read_text() for name in ("log.2", "log.1", "log"))
    numbers = [int(line.split("line ")[1][:2]) for line in kept.splitlines()]
    assert numbers == list(range(numbers[0], 60)) and len(numbers) > 20
    assert all(path.stat().st_size <= 1000 for path in file.parent.iterdir())
    assert file.stat().st_mode & 0o007 == 0
    assert writer.lost == 0


def test_a_file_that_another_program_renamed_is_begun_anew(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with writing(file, kept=0) as writer:
        writer.emit(record("before"))
        file.rename(tmp_path / "log.old")
        writer.emit(record("after"))
    assert "before" in (tmp_path / "log.old").read_text() and "after" in file.read_text()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_loses_lines_and_nothing_else() -> None:
    with Logs(LogSettings(file=Path("/dev/full"))) as logs:
        for _ in range(50):
            LOG.info("nobody reads this")
        _until(lambda: logs.lost == 50)
    assert logs.lost == 50


def test_lines_come_again_once_the_disk_has_room_and_say_how_many_were_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, room, write = tmp_path / "log", 150, os.write

    def scarce(descriptor: int, data: bytes) -> int:
        nonlocal room
        if room <= 0:
            raise OSError(28, "No space left on device")
        written = write(descriptor, data[:room])
        room -= written
        return written

    with writing(file) as writer:
        monkeypatch.setattr(module.os, "write", scarce)
        for number in range(5):
            writer.emit(record(f"line {number} " + "x" * 40))
        assert writer.lost == 4
        room = 10_000
        writer.emit(record("room again"))
    whole, torn, told, again = file.read_text().splitlines()
    assert "line 0" in whole and "line 1" in torn and "4 lines of the log were lost" in told and "room again" in again
    assert writer.lost == 4


@pytest.mark.skipif(
    os.geteuid() != 0 or sys.platform != "linux", reason="a small disk is mounted, which root may on Linux"
)
def test_on_a_small_disk_that_fills_up_the_log_goes_on_when_there_is_room(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], capture_output=True).returncode:
        pytest.skip("nothing may be mounted here")
    try:
        with writing(disk / "log") as writer:
            for number in range(2000):
                writer.emit(record(f"line {number} " + "x" * 60))
            assert writer.lost > 500
            os.truncate(disk / "log", 0)
            writer.emit(record("room again"))
            assert "lines of the log were lost" in (disk / "log").read_text()
            assert "room again" in (disk / "log").read_text().splitlines()[-1]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_writer_that_stands_still_holds_nobody_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stuck = threading.Event()

    def stand(self: Writer, record: logging.LogRecord) -> None:
        stuck.wait(30)

    monkeypatch.setattr(Writer, "emit", stand)
    monkeypatch.setattr(module, "LINES", 100)
    monkeypatch.setattr(module, "STOP_SECONDS", 0.1)
    began = time.monotonic()
    with Logs(LogSettings(file=tmp_path / "log")) as logs:
        for _ in range(1000):
            LOG.info("x")
        assert logs.lost >= 890
    assert time.monotonic() - began < 10
    stuck.set()


def test_a_file_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="log cannot be written"):
        Logs(LogSettings(file=tmp_path))


def test_standard_error_is_the_log_by_default_and_loggers_are_as_before(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("aiasst")
    before = (logger.handlers[:], logger.level, logger.propagate)
    with open(2, "w", closefd=False) as error:
        monkeypatch.setattr(sys, "stderr", error)
        with Logs(LogSettings(level="warning")):
            LOG.info("not this")
            LOG.warning("but this")
    assert (logger.handlers, logger.level, logger.propagate) == before
    told = capfd.readouterr().err
    assert "but this" in told and "not this" not in told


def test_without_a_standard_error_the_service_says_where_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with pytest.raises(UsageError, match="log"):
        Logs(LogSettings())


def _until(holds: Callable[[], bool]) -> None:
    ends = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.01)
