"""The answers file: whole lines only, one process only, one job only; killed and continued without a row lost or doubled."""

from __future__ import annotations

import json
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aiasst.errors import ArtifactError, ResourceError
from aiasst.run.answers import Answer, ErrorFields, job_path, open_answers
from aiasst.run.job import Defaults
from tests.run.killable_job import main, make_job

JOB = make_job()


def opened(path: Path, job=JOB, *, lines: int = 9, seed_given: bool = True, restart: bool = False):  # type: ignore[no-untyped-def]
    return open_answers(path, job, lines=lines, seed_given=seed_given, restart=restart)


def answer(line: int, text: str = "yes") -> Answer:
    return Answer(id=f"row{line}", line=line, text=text, finish_reason="stop", seed=1)


def lines_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_answers_are_appended_and_found_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "answers.jsonl"
    with opened(path) as file:
        file.append(answer(2))
        file.append(Answer(id=None, line=3, error=ErrorFields(message="no", hint="yes")))
    with opened(path) as file:
        assert [n for n, done in enumerate(file.done.lines) if done] == [2, 3]
        assert (file.done.rows, file.done.errors) == (2, 1)
        file.append(answer(1))
    assert [line["line"] for line in lines_of(path)] == [2, 3, 1]
    assert lines_of(path)[1] == {"id": None, "line": 3, "error": {"message": "no", "hint": "yes"}}


def test_an_answer_is_one_line_for_every_reader() -> None:
    text = "a\nb\u2028c\x85d\u2029é"
    line = answer(1, text).to_line()
    assert len(line.splitlines()) == 1
    assert json.loads(line)["text"] == text


@pytest.mark.parametrize("torn", [b'{"id": "row3", "li', b'{"id": "row3", "line": 3, "text": "yes"}', b"\0\0\0"])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "answers.jsonl"
    with opened(path) as file:
        file.append(answer(2))
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    with opened(path) as file:
        assert file.done.rows == 1
    assert path.read_bytes() == whole


@pytest.mark.parametrize("line", ["nonsense", '{"id": 1, "line": 77, "text": ""}', '{"id": 1}', "[]"])
def test_a_damaged_line_within_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "answers.jsonl"
    with opened(path) as file:
        file.append(answer(2))
    path.write_text(line + "\n" + path.read_text())
    with pytest.raises(ArtifactError, match="line 1"), opened(path):
        pass


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompts_sha256": "other", "rows": 4}, "the prompts have changed .it has 3 rows, now 4"),
        ({"model_sha256": "other", "model": "n"}, "the model is another .'m', now 'n'"),
        ({"seed": 6}, "the seed is another .5, now 6"),
        ({"defaults": JOB.defaults.model_copy(update={"temperature": 0.0})}, "temperature is another .0.5, now 0.0"),
    ],
)
def test_answers_of_another_job_are_not_continued(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    path = tmp_path / "answers.jsonl"
    with opened(path) as file:
        file.append(answer(1))
    before = path.read_bytes()
    with pytest.raises(ArtifactError, match=words) as refused, opened(path, make_job(**changes)):
        pass
    assert "--restart" in refused.value.hint
    assert path.read_bytes() == before
    with opened(path, make_job(**changes), restart=True) as file:
        assert file.done.rows == 0
    assert path.read_bytes() == b""


def test_without_a_seed_that_of_the_beginning_holds(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with opened(path) as file:
        file.append(answer(1))
    with opened(path, make_job(seed=99), seed_given=False) as file:
        assert file.job.seed == 5


def test_a_foreign_file_is_left_alone_even_with_restart(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text("my diary\n")
    for restart in (False, True):
        with pytest.raises(ArtifactError, match="cannot be continued"), opened(path, restart=restart):
            pass
    assert path.read_text() == "my diary\n"
    assert not job_path(path).exists()
    with pytest.raises(ArtifactError, match="is a folder"), opened(tmp_path):
        pass


def test_a_damaged_job_file_is_refused_while_there_are_answers(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    job_path(path).write_text("{")
    with opened(path) as file:  # torn before the first answer: nothing to protect
        file.append(answer(1))
    job_path(path).write_text("{")
    with pytest.raises(ArtifactError, match="damaged"), opened(path):
        pass


def test_what_fails_before_its_first_answer_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with pytest.raises(KeyboardInterrupt), opened(path):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt), opened(path) as file:
        file.append(answer(1))
        raise KeyboardInterrupt
    assert len(lines_of(path)) == 1


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with opened(path), pytest.raises(ArtifactError, match="another process is working"), opened(path):
        pass
    with opened(path):
        pass


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(ResourceError, match="the 3 answers in it are whole"), opened(path) as file:
            # A file may not grow beyond this: the system takes a part of the write, as a full disk does.
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
            for line in range(1, 9):
                file.append(answer(line, "x" * 200))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert [line["line"] for line in lines_of(path)] == [1, 2, 3]
    with opened(path) as file:
        assert file.done.rows == 3


def texts(lines: list[dict[str, object]]) -> dict[object, tuple[object, object]]:
    """What must not depend on interruptions; what was in the cache may."""
    return {line["line"]: (line.get("text"), line.get("seed")) for line in lines}


def start(prompts: Path, answers: Path, delay: float) -> subprocess.Popen[bytes]:
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.run.killable_job", str(prompts), str(answers), str(delay)], cwd=root
    )


def wait_for_lines(path: Path, count: int) -> None:
    limit = time.monotonic() + 60
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_killed_again_and_again_no_row_is_lost_or_doubled(tmp_path: Path) -> None:
    prompts, answers = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    ids = [f"row{n}" for n in range(40)]
    rows = [json.dumps({"id": i, "prompt": f"tell {i}" + (" fast" if n % 3 else "")}) for n, i in enumerate(ids)]
    rows.insert(7, '{"broken": ')
    prompts.write_text("\n".join(rows))
    choice = random.Random(1)
    answered = 0
    for _ in range(4):
        worker = start(prompts, answers, 0.01)
        wait_for_lines(answers, answered + 1)
        time.sleep(choice.random() * 0.1)
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        answered = answers.read_bytes().count(b"\n")
    assert 0 < answered < len(rows)
    assert start(prompts, answers, 0).wait() == 0

    found = lines_of(answers)
    assert sorted(line["id"] for line in found if "error" not in line) == sorted(ids)
    assert [line["line"] for line in found if "error" in line] == [8]
    whole = tmp_path / "whole.jsonl"
    main(prompts, whole)
    assert texts(found) == texts(lines_of(whole))


def test_a_second_process_is_refused_and_a_dead_one_does_not_block(tmp_path: Path) -> None:
    prompts, answers = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    prompts.write_text('{"prompt": "a fast"}\n' + '{"prompt": "b"}\n' * 2)
    worker = start(prompts, answers, 1)
    try:
        wait_for_lines(answers, 1)
        with pytest.raises(ArtifactError, match="another process"):
            main(prompts, answers)
    finally:
        worker.kill()
        worker.wait()
    main(prompts, answers)
    assert len(lines_of(answers)) == 3


def test_the_job_file_is_for_people_too(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with opened(path):
        pass
    data = json.loads(job_path(path).read_text())
    assert data["seed"] == 5
    assert Defaults.model_validate(data["defaults"]).max_tokens == 8
