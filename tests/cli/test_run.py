"""`aiasst run` as a person starts it, with the story model: files, errors, interruptions, resumption."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aiasst.artifacts.device import LimitDecision, save_device_config
from aiasst.cli.run import _facts
from aiasst.profile import quick_config
from aiasst.run import Summary
from aiasst.sensors import chosen, find

PROMPTS = [
    {"id": "wood", "prompt": "Once upon a time, in a little house"},
    {"id": "king", "prompt": "The old king had three sons", "temperature": 0},
    {"id": "sea", "prompt": "The sea", "max_tokens": 3},
    {"id": "bread", "prompt": "Give me some bread, said", "stop": [".", "\n"]},
    {"prompt": "The fox"},
]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, PROMPTS)) + "\n")
    return path


def arguments(story: Path, *more: object) -> list[str]:
    return [sys.executable, "-m", "aiasst", "run", str(story), *map(str, more)]


def start(story: Path, *more: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments(story, *more), capture_output=True, text=True, input=stdin, check=False)


def answers_in(path: Path) -> dict[Any, dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = {line["id"]: line for line in lines}
    assert len(found) == len(lines)
    return found


def test_what_prompts_share_is_computed_once_and_kept_for_the_next_job(story: Path, tmp_path: Path) -> None:
    shots = "The fox is red and the wood is green. The sea is blue and the snow is white. The night is"
    prompts, kept = tmp_path / "shots.jsonl", tmp_path / "kept"
    prompts.write_text("".join(json.dumps({"prompt": f"{shots} {word}"}) + "\n" for word in ("dark", "old", "long")))

    def cached(out: Path) -> int:
        ended = start(
            story, prompts, "-o", out, "--max-tokens", 3, "--temperature", 0, "--prefix-cache", kept, "--json"
        )
        assert ended.returncode == 0, ended.stderr
        assert "anew" not in ended.stderr
        answers.append([line["text"] for line in answers_in(out).values()])
        return int(json.loads(ended.stdout)["cached_tokens"])

    answers: list[list[str]] = []
    first = cached(tmp_path / "a.jsonl")
    assert [file.suffix for file in kept.iterdir()] == [".kv"]
    second = cached(tmp_path / "b.jsonl")
    assert first % 2 == 0 and second == first // 2 * 3
    assert answers[0] == answers[1]


def test_every_row_is_answered_as_it_asks(story: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "answers.jsonl"
    ended = start(story, prompts, "-o", out, "--max-tokens", 12, "--seed", 1)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == ""
    assert "tok/s" in ended.stderr
    found = answers_in(out)
    assert set(found) == {"wood", "king", "sea", "bread", 5}
    assert found["sea"]["usage"]["completion_tokens"] == 3
    assert found["wood"]["usage"]["completion_tokens"] == 12
    assert "." not in found["bread"]["text"]
    assert all(answer["text"].strip() for answer in found.values())


def test_the_same_seed_gives_the_same_answers_alone_and_together(story: Path, prompts: Path, tmp_path: Path) -> None:
    together, alone, other = (tmp_path / f"{name}.jsonl" for name in ("together", "alone", "other"))
    one = tmp_path / "one.jsonl"
    one.write_text(json.dumps(PROMPTS[0]))
    start(story, prompts, "-o", together, "--max-tokens", 6, "--seed", 4, "-q")
    start(story, one, "-o", alone, "--max-tokens", 6, "--seed", 4, "-q")
    start(story, prompts, "-o", other, "--max-tokens", 6, "--seed", 5, "-q")
    texts = [{n: a["text"] for n, a in answers_in(path).items()} for path in (together, alone, other)]
    assert texts[1]["wood"] == texts[0]["wood"] != texts[2]["wood"]
    assert texts[0]["king"] == texts[2]["king"]  # greedy: no seed matters


def test_rows_are_held_to_what_they_ask_for_beside_others_that_are_free(story: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    free = {"id": "free", "prompt": "Once upon a time", "max_tokens": 8, "logprobs": 2, "temperature": 0}
    schema = {"type": "object", "properties": {"dog": {"enum": ["Rex", "Bo"]}}, "required": ["dog"]}
    rows = [
        {"id": "json", "prompt": "A dog:", "json_schema": schema | {"additionalProperties": False}},
        free,
        {"id": "regex", "prompt": "Call", "regex": "[0-9]{3}-[0-9]{2}", "temperature": 2.0},
        {"id": "biased", "prompt": "Once", "max_tokens": 3, "logit_bias": {"67": 100}, "temperature": 0},
        {"id": "impossible", "prompt": "Once", "regex": "(?=a)"},
        {"id": "beyond", "prompt": "Once", "logit_bias": {"99999": 1}},
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    ended = start(story, path, "-o", out, "--seed", 3)
    assert ended.returncode == 0, ended.stderr
    answers = answers_in(out)
    assert json.loads(answers["json"]["text"])["dog"] in ("Rex", "Bo")
    assert answers["json"]["finish_reason"] == "stop"
    assert re.fullmatch(r"\d{3}-\d{2}", answers["regex"]["text"])
    assert answers["biased"]["text"] == "aaa"
    assert "look-around" in answers["impossible"]["error"]["message"]
    assert "outside the vocabulary of 4096" in answers["beyond"]["error"]["message"]
    told = answers["free"]["logprobs"]
    assert len(told) == answers["free"]["usage"]["completion_tokens"] == 8
    assert "".join(token["text"] for token in told) == answers["free"]["text"]
    assert all(token["top"][0]["id"] == token["id"] and len(token["top"]) == 2 for token in told)
    assert "logprobs" not in answers["json"]


def test_in_a_pipe_with_bad_rows(story: Path) -> None:
    lines = ['{"id": "a", "prompt": "Once"}', "{broken", '{"id": "b", "prompt": "' + "word " * 1100 + '"}']
    lines += ['{"id": "c", "messages": [{"role": "user", "content": "Hello"}]}']
    ended = start(story, "-", "-o", "-", "--max-tokens", 4, stdin="\n".join(lines))
    assert ended.returncode == 0, ended.stderr
    found = {line["line"]: line for line in map(json.loads, ended.stdout.splitlines())}
    assert found[1]["text"]
    assert "not valid JSON" in found[2]["error"]["message"]
    assert "1024 tokens" in found[3]["error"]["message"]
    assert "no chat template" in found[4]["error"]["message"]


def test_json_is_the_summary_and_all_errors_are_a_failure(story: Path, tmp_path: Path) -> None:
    ended = start(story, "-", "-o", tmp_path / "a.jsonl", "--json", "--seed", 3, stdin="{broken\n[]\n")
    summary = json.loads(ended.stdout)
    assert (summary["rows"], summary["errors"], summary["seed"]) == (2, 2, 3)
    assert ended.returncode == 1
    assert "none of the 2 rows could be answered" in ended.stderr


def test_an_empty_file_has_no_answers(story: Path, tmp_path: Path) -> None:
    ended = start(story, "-", "-o", tmp_path / "a.jsonl", "--json", "-q")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["rows"] == 0
    assert (tmp_path / "a.jsonl").read_text() == ""


def test_another_job_is_refused_and_restart_begins_anew(story: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    common = (story, prompts, "-o", out, "-q")
    assert start(*common, "--max-tokens", 2).returncode == 0
    again = start(*common, "--max-tokens", 3)
    assert again.returncode == 1
    assert "max_tokens is another (2, now 3)" in again.stderr
    assert "--restart" in again.stderr
    assert start(*common, "--max-tokens", 3, "--restart").returncode == 0
    assert answers_in(out)["wood"]["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--config", "absent.json"), "there is no device config"),
        (("--top-p", "3"), "top_p is 3.0"),
        (("--max-tokens", "0"), "max_tokens is 0"),
    ],
)
def test_bad_usage_leaves_nothing_behind(
    story: Path, prompts: Path, tmp_path: Path, more: tuple[str, ...], words: str
) -> None:
    ended = start(story, prompts, "-o", tmp_path / "answers.jsonl", *more)
    assert ended.returncode == 1
    assert words in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.jsonl"]


def test_files_that_are_not_there_or_the_same(story: Path, prompts: Path, tmp_path: Path) -> None:
    assert "there is no prompts file" in start(story, tmp_path / "no", "-o", tmp_path / "a").stderr
    assert "is the prompts file" in start(story, prompts, "-o", prompts).stderr
    assert "cannot be both" in start(story, prompts, "-o", "-", "--json").stderr
    assert "there is no folder" in start(tmp_path / "no", prompts, "-o", tmp_path / "a").stderr


def many(tmp_path: Path, rows: int) -> Path:
    """Prompts of which the first few dozen begin with characters of their own: none takes over what another one left."""
    path = tmp_path / "many.jsonl"
    texts = (f"{chr(65 + n)} and {n} kings went" for n in range(rows))
    path.write_text("".join(json.dumps({"id": n, "prompt": text}) + "\n" for n, text in enumerate(texts)))
    return path


def begin_and_signal(command: list[str], out: Path, number: signal.Signals, *, after: int, wait: float) -> int:
    worker = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 60
    while (not out.exists() or out.read_bytes().count(b"\n") <= after) and worker.poll() is None:
        assert time.monotonic() < limit
        time.sleep(0.005)
    time.sleep(wait)
    worker.send_signal(number)
    return worker.wait()


def one_at_a_time(path: Path) -> Path:
    """A device config of one slot: rounding depends on how many rows are computed together, and so may a sampled text."""
    config = quick_config()
    slots = config.decisions.slots.model_copy(update={"value": 1})
    decisions = config.decisions.model_copy(update={"slots": slots})
    save_device_config(path, config.model_copy(update={"decisions": decisions}))
    return path


def test_killed_and_continued_gives_what_an_undisturbed_job_gives(story: Path, tmp_path: Path) -> None:
    rows, out, whole = 40, tmp_path / "answers.jsonl", tmp_path / "whole.jsonl"
    options = ("--max-tokens", 30, "--seed", 9, "-q", "--config", one_at_a_time(tmp_path / "device.json"))
    command = arguments(story, many(tmp_path, rows), "-o", out, *options)
    choice = random.Random(3)
    for _ in range(2):
        after = out.read_bytes().count(b"\n") if out.exists() else 0
        begin_and_signal(command, out, signal.SIGKILL, after=after, wait=choice.random() * 0.05)
    assert 0 < len(answers_in_whole_lines(out)) < rows
    assert subprocess.run(command, check=False).returncode == 0
    start(story, tmp_path / "many.jsonl", "-o", whole, *options)
    found, expected = answers_in(out), answers_in(whole)
    assert set(found) == set(range(rows))
    assert {n: a["seed"] for n, a in found.items()} == {n: a["seed"] for n, a in expected.items()}
    assert {n: a["text"] for n, a in found.items()} == {n: a["text"] for n, a in expected.items()}


def test_drafts_are_left_out_where_one_text_is_wanted(story: Path, tmp_path: Path) -> None:
    row = {"prompt": "Once", "regex": r"(The wolf went home\. ){12}", "max_tokens": 200}
    found = {}
    for options in ("--seed 3", "--no-speculate", "--seed 3 --speculate"):
        out = tmp_path / f"{len(found)}.jsonl"
        ended = start(story, "-", "-o", out, "--json", *options.split(), stdin=json.dumps(row))
        assert answers_in(out)[1]["text"].strip() == " ".join(["The wolf went home."] * 12)
        found[options] = json.loads(ended.stdout)
    assert found["--seed 3"]["drafted_tokens"] == found["--no-speculate"]["drafted_tokens"] == 0
    drafted = found["--seed 3 --speculate"]
    # Whether they pay is measured; a machine on which they never do is thinkable.
    assert 0 <= drafted["accepted_tokens"] <= drafted["drafted_tokens"]


def answers_in_whole_lines(path: Path) -> list[bytes]:
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def test_ctrl_c_says_how_to_go_on(story: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    command = arguments(story, many(tmp_path, 400), "-o", out, "--max-tokens", "200")
    with (tmp_path / "talk").open("w") as talk:
        worker = subprocess.Popen(command, stderr=talk)
        while not out.exists() or b"\n" not in out.read_bytes():
            time.sleep(0.01)
        worker.send_signal(signal.SIGINT)
        assert worker.wait() == 130
    said = (tmp_path / "talk").read_text()
    assert "the same command goes on from there" in said
    assert "Traceback" not in said
    assert len(answers_in_whole_lines(out)) == out.read_bytes().count(b"\n")


def test_pauses_for_a_limit_are_told_in_a_line() -> None:
    summary = Summary(
        rows=3, earlier=0, errors=0, seed=1, prompt_tokens=9, cached_tokens=0, completion_tokens=30, seconds=9.0,
        tokens_per_second=3.3, drafted_tokens=0, accepted_tokens=0,
    )  # fmt: skip
    assert "paced" not in dict(_facts(summary))
    assert dict(_facts(replace(summary, paced_seconds=4.24)))["paced"] == (
        "4.2 s of pauses kept the limits of the device config"
    )


def test_a_limit_that_cannot_be_kept_is_refused(story: Path, prompts: Path, tmp_path: Path) -> None:
    found = quick_config()
    impossible = chosen.temperature(find())
    if impossible.sensors:
        pytest.skip("this machine tells its temperature")
    limit = LimitDecision(value=70, reason="it stands in a cupboard")
    decisions = found.decisions.model_copy(update={"temperature_limit_celsius": limit})
    config = tmp_path / "device.json"
    save_device_config(config, found.model_copy(update={"decisions": decisions}))
    ended = start(story, prompts, "-o", tmp_path / "answers.jsonl", "--config", config)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "a limit of 70 °C, which cannot be kept here" in ended.stderr
    assert "temperature_limit_celsius" in ended.stderr
    assert not (tmp_path / "answers.jsonl").exists()
