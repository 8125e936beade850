"""`aiasst quantize` as a person starts it: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from aiasst.cli import app
from tests.quantize import graphs
from tests.runtime.graphs import tiny_decoder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return graphs.product(tmp_path / "model" / "small.onnx", graphs.random(256, 64)).parent


def _start(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["aiasst", "quantize", *map(str, arguments)])
    try:
        app.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_bits_name_a_recipe_and_the_output(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _start(monkeypatch, model, "--bits", 4) == 0
    assert (model.parent / "model-int4" / "aiasst.json").exists()
    captured = capsys.readouterr()
    assert "4.25 bits per weight" in captured.out
    assert "quantize" in captured.err


def test_json_is_one_document_on_stdout(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _start(monkeypatch, model, "--recipe", "int8", "-o", model.parent / "out", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["bits_per_weight"] == 8.25
    assert document["recipe"] == "int8"
    assert document["bytes"] > 256 * 64


def test_quiet_says_nothing(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert _start(monkeypatch, model, "--bits", 8, "--quiet") == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_a_dry_run_shows_the_plan_and_writes_nothing(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _start(monkeypatch, model, "--recipe", "mixed", "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "int8-b128" in shown  # the only layer is the first and the last
    assert "8.25 bits per weight" in shown
    assert _start(monkeypatch, model, "--recipe", "mixed", "--dry-run", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["weights"]["layers.0.o_proj.weight"]["format"] == "int8-b128"
    assert document["bytes"] < document["bytes_before"]
    assert [p.name for p in model.parent.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bits", "3"], ["no 3-bit format", "2, 4 and 8", "mixed"]),
        (["--bits", "4", "--recipe", "int8"], ["twice"]),
        (["--recipe", "int5"], ["no recipe 'int5'", "int4-fast"]),
        (["--recipe", "absent.yaml"], ["no recipe at"]),
        (["--bits", "4", "--max-size", "1GB"], ["contradict", "--max-kld"]),
        (["--max-size", "many"], ["no size", "1.1GB"]),
        (["--min-top1", "93"], ["no share", "0.93"]),
        (["--token-ms", "20"], ["costs of a machine", "aiasst profile"]),
        (["--bits", "4", "--workload", "4x512+128"], ["--token-ms"]),
        (["--bits", "4", "--plot", "plan.png"], ["a budget"]),
        (["--target-bpw", "9", "--plot", "plan.jpg"], ["no PNG"]),
        (["--target-bpw", "9"], ["cannot be planned", "--recipe"]),
        (["--bits", "4", "--cache", "int4"], ["no cache of 'int4'", "--cache int8"]),
        (["--bits", "4", "--cache", "int8"], ["no cache that could be int8", "--cache"]),
        (["--bits", "4", "--algorithm", "magic"], ["no quantization algorithm 'magic'", "gptq"]),
    ],
)
def test_mistakes_are_told_with_what_to_do(
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: list[str],
) -> None:
    assert _start(monkeypatch, model, *arguments) in (1, 2)
    captured = capsys.readouterr()
    shown = " ".join(captured.err.split())
    assert all(word in shown for word in ["error:", "try:", *words]), shown
    assert captured.out == ""
    assert [p.name for p in model.parent.iterdir()] == ["model"]


def test_a_folder_that_is_quantized_already(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _start(monkeypatch, model, "-q") == 0
    assert _start(monkeypatch, model.parent / "model-int4", "--bits", 8) == 1
    assert "quantized already" in " ".join(capsys.readouterr().err.split())


def test_a_small_cache_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tiny_decoder(tmp_path / "model.onnx")
    np.savez(tmp_path / "ids.npz", input_ids=np.arange(40).reshape(2, 20))
    out = tmp_path / "out"
    arguments = [source, "-o", out, "--bits", 8, "--cache", "int8", "--calibration", tmp_path / "ids.npz"]
    assert _start(monkeypatch, *arguments) == 0
    assert "(int8), int8 cache" in capsys.readouterr().out
    assert _start(monkeypatch, *arguments, "--force", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["cache"]["format"], document["cache"]["calibration"]["tokens"]) == ("int8", 40)
    assert "\ncache: int8\n" in (out / "recipe.yaml").read_text()
