"""Encoders as a person starts them: convert, quantize, run, search, from a tiny classifier and a tiny embedder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import checkpoints


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """embedder/ and judge/, a classifier of three labels, both in float32."""
    from aiasst.convert import convert

    place = tmp_path_factory.mktemp("folders")
    convert(checkpoints.build("bert", place / "bert"), place / "embedder")
    judge = checkpoints.build("bert", place / "bert3", auto_class="AutoModelForSequenceClassification", num_labels=3)
    convert(judge, place / "judge")
    return place


def start(*arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "aiasst", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, input=stdin, check=False)


def test_run_gives_labels_and_vectors(folders: Path, tmp_path: Path) -> None:
    rows = '{"id": "a", "text": "the rain"}\n{"id": "b", "text": "the rain", "pair": "in Spain"}\n'
    ended = start("run", folders / "judge", "-", "-o", "-", "--top", 2, stdin=rows)
    assert ended.returncode == 0, ended.stderr
    first, second = map(json.loads, ended.stdout.splitlines())
    assert [len(line["labels"]) for line in (first, second)] == [2, 2]
    assert first["labels"][0]["score"] >= first["labels"][1]["score"]
    assert first["labels"][0]["label"].startswith("LABEL_")
    assert "rows/s" in ended.stderr

    ended = start("run", folders / "embedder", "-", "-o", tmp_path / "v.npy", "--json", stdin=rows)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["errors"] == 1
    assert np.load(tmp_path / "v.npy").shape == (1, 64)


def test_what_of_a_device_config_is_obeyed_is_said(folders: Path, tmp_path: Path) -> None:
    """As for models that write: threads, and another machine's config; sequences and cache are not an encoder's."""
    device, rows = tmp_path / "device.json", '{"text": "the rain"}\n'
    assert start("profile", "--quick", "-q", "-o", device).returncode == 0
    ended = start("run", folders / "judge", "-", "-o", "-", "--config", device, stdin=rows)
    assert ended.returncode == 0, ended.stderr
    said = " ".join(ended.stderr.split())
    assert "device config of 2" in said
    assert "thread" in said
    assert "at once" not in said
    assert (
        "device config"
        not in start("run", folders / "judge", "-", "-o", "-", "--config", device, "-q", stdin=rows).stderr
    )

    data = json.loads(device.read_text())
    data["hardware"] |= {"machine_id": "0" * 16, "cpu_model": "Zilog Z80", "physical_cores": 1}
    device.write_text(json.dumps(data))
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"text": "a cat sleeps"}\n')
    for command in (
        ("run", folders / "judge", "-", "-o", "-", "--config", device),
        ("search", folders / "embedder", corpus, "a cat", "--config", device),
    ):
        ended = start(*command, stdin=rows)
        assert ended.returncode == 0, ended.stderr
        said = " ".join(ended.stderr.split())
        assert "written on another machine (Zilog Z80, 1 core," in said
        assert "safe values for this machine" in said


def test_options_of_the_other_kind_are_refused(folders: Path, tmp_path: Path, story: Path) -> None:
    ended = start("run", folders / "judge", "-", "-o", tmp_path / "a", "--temperature", 1)
    assert ended.returncode == 1
    assert "--temperature has no meaning" in ended.stderr
    ended = start("run", story, "-", "-o", tmp_path / "a", "--top", 1)
    assert "--top is for encoders" in ended.stderr
    assert not list(tmp_path.iterdir())


def test_search_finds_a_passage_by_itself(folders: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    texts = ("the cat sat on the mat", "interest rates rose", "zzz")
    corpus.write_text("".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(texts)))
    ended = start("search", folders / "embedder", corpus, "interest rates rose", "--top", 2, "--json")
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert (found["rows"], found["embedded_now"], found["exact"]) == (3, True, True)
    assert found["queries"][0]["hits"][0]["id"] == 1
    again = start("search", folders / "embedder", corpus, "-", stdin="zzz\n\nthe cat\n")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("score") == 2
    assert "embed" not in again.stderr
    refused = start("search", folders / "judge", corpus, "cat")
    assert (refused.returncode, "makes no vectors" in refused.stderr) == (1, True)
