"""A folder of two forms, from `quantize --twin` to every command that meets it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aiasst.artifacts.device import load_device_config
from aiasst.artifacts.model_folder import ModelFolder
from aiasst.cli import app
from aiasst.convert import convert
from tests import checkpoints

RECIPE = """
schema_version: 1
name: small
description: small blocks for small models
algorithm: rtn
default: {format: int4, block_size: 32}
rules:
  - roles: [embed, lm_head]
    use: {format: int8, block_size: 32}
"""
Start = Callable[..., Any]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Start:
    """Runs a command that must end well, and gives what it said."""

    def run(*arguments: object) -> Any:
        monkeypatch.setattr(sys, "argv", ["aiasst", *map(str, arguments)])
        monkeypatch.setattr("aiasst.evaluate.decoders.DEFAULT_TOKENS", 512)
        code = 0
        try:
            app.main()
        except SystemExit as end:
            code = int(end.code or 0)
        said = capsys.readouterr()
        assert code == 0, said.err
        return said

    return run


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    (folder / "small.yaml").write_text(RECIPE)
    return convert(checkpoints.build("llama", folder / "checkpoint"), folder / "llama").path


def test_every_command_knows_of_both(start: Start, original: Path, tmp_path: Path) -> None:
    folder, recipe = tmp_path / "pair", original.parent / "small.yaml"
    made = json.loads(start("quantize", original, "--recipe", recipe, "--twin", "-o", folder, "--json").out)
    model = ModelFolder.open(folder)
    assert (made["bytes"], made["twin_bytes"]) == (model.weight_bytes, model.twin_bytes)
    assert made["card"]["pair"]["bytes"] == made["bytes"] + made["twin_bytes"]
    shown = start("quantize", original, "--recipe", recipe, "--twin", "-o", folder, "--force").out
    assert "and its second form" in shown and "both forms: KL divergence, mean" in shown
    assert "both forms: KL divergence, mean" in (folder / "CARD.md").read_text()

    inspected = start("inspect", folder, "--check").out
    assert "second form" in inspected and "Weights by role of the second form" in inspected
    assert "(shared)" in inspected and "every hash is right" in inspected
    assert "second form" not in start("inspect", original).out

    device = tmp_path / "device.json"
    assert "from 12 rows" in start("profile", folder, "--quick", "-o", device).out
    decided = load_device_config(device).decisions.twin
    assert decided is not None and decided.use

    prompts, answers = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    prompts.write_text(json.dumps({"prompt": "once upon a time there was a little girl"}) + "\n")
    ran = start("run", folder, prompts, "-o", answers, "--config", device, "--max-tokens", 4)
    assert "two forms run, w8a8 from 12 rows up" in ran.err
    data = json.loads(device.read_text())
    data["decisions"]["twin"] |= {"use": False, "reason": "it was switched off"}
    device.write_text(json.dumps(data))
    ran = start("run", folder, prompts, "-o", answers, "--config", device, "--max-tokens", 4, "--restart")
    assert "one form of two runs: it was switched off" in ran.err


def test_a_recipe_that_is_the_second_form_already_is_refused(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["quantize", original, "--recipe", "w8a8", "--algorithm", "rtn", "--twin", "-o", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["aiasst", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        app.main()
    assert end.value.code == 1
    assert "leave --twin out" in capsys.readouterr().err
