"""Calibration from end to end: on every architecture, the same bytes each time, killed and resumed, and refused in time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from shutil import copytree, ignore_patterns, rmtree
from typing import Any

import numpy as np
import pytest

from aiasst.artifacts import signature
from aiasst.artifacts.model_folder import GRAPH_NAME, WEIGHTS_NAME, ModelFolder
from aiasst.artifacts.recipe import Recipe, WeightFormat
from aiasst.errors import BudgetRefused, ResourceError
from aiasst.progress import Progress
from aiasst.quantize import preview, quantize
from aiasst.quantize.calibrate.activations import ActivationStore
from aiasst.quantize.calibrate.state import WorkState, work_folder
from aiasst.runtime.session import GraphSession
from tests import checkpoints
from tests.quantize import graphs

Tiny = Callable[[str], ModelFolder]

INT4 = WeightFormat(format="int4", block_size=32)


@pytest.fixture(scope="module")
def ids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two dozen sequences of 40 tokens."""
    path = tmp_path_factory.mktemp("ids") / "ids.npz"
    np.savez(path, input_ids=np.random.default_rng(0).integers(4, 105, (24, 40)))
    return path


def _outputs(folder: ModelFolder) -> np.ndarray:
    """Logits or hidden states of every token."""
    tokens = np.random.default_rng(5).integers(4, 105, (2, 20))
    session = GraphSession.open(folder.graph)
    feeds: dict[str, Any] = {signature.INPUT_IDS: tokens, signature.ATTENTION_MASK: np.ones_like(tokens)}
    for name in session.input_names:
        if name == signature.TOKEN_TYPE_IDS:
            feeds[name] = np.zeros_like(tokens)
        elif name not in feeds:
            _, heads, _, size = session.input_shape(name)
            feeds[name] = np.zeros((2, int(heads or 0), 0, int(size or 0)), np.float32)
    if signature.ALL_LOGITS in session.optional_names:
        feeds[signature.ALL_LOGITS] = np.array(True)
    return session.run(feeds, [session.output_names[0]])[0]


def _bytes(folder: ModelFolder) -> tuple[str, str]:
    """Hashes of the graph and the weights; the card tells the folder's name."""
    files = folder.manifest.files
    return files[GRAPH_NAME].sha256, files[WEIGHTS_NAME].sha256


def _error(folder: ModelFolder, original: ModelFolder) -> float:
    wanted = _outputs(original)
    return float(np.square(_outputs(folder) - wanted).sum() / np.square(wanted - wanted.mean(-1, keepdims=True)).sum())


@pytest.mark.parametrize("name", checkpoints.ARCHITECTURES)
def test_every_architecture_is_calibrated(tiny: Tiny, tmp_path: Path, ids: Path, name: str) -> None:
    source = tiny(name)
    folder = quantize(source, tmp_path / "out", recipe="int4", algorithm="gptq", calibration=ids)
    record = folder.manifest.quantization
    assert record is not None
    assert record.calibration is not None
    assert (record.algorithm, record.calibration.used, record.calibration.tokens) == ("gptq", True, 960)
    assert len(record.calibration.sha256) == 64
    plain = quantize(source, tmp_path / "plain", recipe="int4", algorithm="mse")
    assert _error(folder, source) < 1.2 * _error(plain, source)
    assert folder.manifest.weights.keys() == source.manifest.weights.keys()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "plain"]


def test_biases_and_norms_change_with_the_weights(tiny: Tiny, tmp_path: Path, ids: Path) -> None:
    folder = quantize(tiny("gpt2"), tmp_path / "out", recipe="int4", algorithm="gptq", calibration=ids)
    before, after = (graphs.constants(f.graph) for f in (tiny("gpt2"), folder))
    changed = {name for name in before.keys() & after.keys() if not np.array_equal(before[name], after[name])}
    assert {"layers.1.qkv_proj.bias", "layers.1.down_proj.bias"} <= changed
    assert any(name.endswith(("ln_1.weight", "ln_2.weight")) for name in changed)
    # A tied head shares its columns with the embedding, so the norm before it takes no scales.
    assert "norm.weight" not in changed


def test_a_tied_head_of_four_bits_is_calibrated_too(tiny: Tiny, tmp_path: Path, ids: Path) -> None:
    recipe = Recipe(name="all4", description="", default=INT4)
    source = tiny("llama_tied")
    errors = {
        name: _error(quantize(source, tmp_path / name, recipe=recipe, algorithm=name, calibration=ids), source)
        for name in ("gptq", "mse")
    }
    assert errors["gptq"] < 0.8 * errors["mse"]


def test_the_same_seed_gives_the_same_bytes(tiny: Tiny, tmp_path: Path) -> None:
    def made(name: str, seed: int) -> ModelFolder:
        return quantize(tiny("qwen2"), tmp_path / name, recipe="int4", algorithm="gptq", sequences=4, seed=seed)

    folders = made("one", 3), made("two", 3), made("other", 4)
    one, two, other = (_bytes(folder) for folder in folders)
    assert one == two
    assert one != other
    first, same, seen = (folder.manifest.quantization.calibration for folder in folders)  # type: ignore[union-attr]
    assert first == same
    assert first is not None and seen is not None
    assert first.seed == 3
    assert first.sha256 != seen.sha256


# ---------------------------------------------------------------------- interrupted


def _gemma(tiny: Tiny, out: Path, ids: Path, **more: Any) -> ModelFolder:
    return quantize(tiny("gemma3"), out, recipe="int4", algorithm="gptq", calibration=ids, **more)


def _fill_disk_at(last: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step `last` finds no room any more."""
    save = WorkState.save

    def full(self: WorkState, step: str, result: Any) -> None:
        if step == last:
            raise OSError(28, "No space left on device")
        save(self, step, result)

    monkeypatch.setattr(WorkState, "save", full)


def test_what_an_error_interrupts_goes_on_where_it_stopped(
    tiny: Tiny, tmp_path: Path, ids: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _bytes(_gemma(tiny, tmp_path / "whole", ids))
    _fill_disk_at("layer-0003", monkeypatch)
    with pytest.raises(ResourceError, match="disk is full") as caught:
        _gemma(tiny, tmp_path / "out", ids)
    assert "goes on where it stopped" in caught.value.hint
    assert not (tmp_path / "out").exists()
    kept = work_folder(tmp_path / "out")
    assert {file.name for file in (kept / "done").iterdir()} == {
        "lookups.npz", "layer-0000.npz", "layer-0001.npz", "layer-0002.npz",
    }  # fmt: skip
    monkeypatch.undo()
    events: list[Progress] = []
    assert _bytes(_gemma(tiny, tmp_path / "out", ids, progress=events.append)) == whole
    assert "layer 4 of 9" in next(event.note for event in events if event.stage == "calibrate")
    assert not kept.exists()


def test_work_whose_activations_are_gone_begins_anew(
    tiny: Tiny, tmp_path: Path, ids: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _bytes(_gemma(tiny, tmp_path / "whole", ids))
    _fill_disk_at("layer-0003", monkeypatch)
    with pytest.raises(ResourceError):
        _gemma(tiny, tmp_path / "out", ids)
    monkeypatch.undo()
    rmtree(work_folder(tmp_path / "out") / "boundaries")
    assert _bytes(_gemma(tiny, tmp_path / "out", ids)) == whole


def test_a_full_disk_between_layers_is_said_and_survived(
    tiny: Tiny, tmp_path: Path, ids: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ActivationStore, "write", full)
    with pytest.raises(ResourceError, match="finished are kept"):
        _gemma(tiny, tmp_path / "out", ids)
    monkeypatch.undo()
    assert _gemma(tiny, tmp_path / "out", ids).manifest.quantization is not None


def test_other_settings_begin_anew_and_say_so(
    tiny: Tiny, tmp_path: Path, ids: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _bytes(_gemma(tiny, tmp_path / "whole", ids))
    monkeypatch.setattr(WorkState, "remove", lambda _: None)
    quantize(tiny("gemma3"), tmp_path / "out", recipe="int4", algorithm="awq", calibration=ids)
    monkeypatch.undo()
    events: list[Progress] = []
    again = _gemma(tiny, tmp_path / "out", ids, force=True, progress=events.append)
    assert any("beginning anew" in event.note for event in events)
    assert _bytes(again) == whole


_RUN = """
import sys
from aiasst.quantize import quantize
quantize(sys.argv[1], sys.argv[2], recipe="int4", algorithm="awq", calibration=sys.argv[3])
"""


def test_what_was_killed_gives_the_same_bytes(story: ModelFolder, tmp_path: Path) -> None:
    ids = tmp_path / "ids.npz"
    np.savez(ids, input_ids=np.random.default_rng(0).integers(1, 4096, (4, 48)))
    out = tmp_path / "out"
    begun = subprocess.Popen([sys.executable, "-c", _RUN, str(story.path), str(out), str(ids)])
    middle = work_folder(out) / "done" / "layer-0003.npz"
    deadline = time.monotonic() + 120
    while not middle.exists() and begun.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(begun.pid, signal.SIGKILL)
    assert begun.wait() == -signal.SIGKILL
    assert middle.exists()
    assert not out.exists()
    events: list[Progress] = []
    resumed = quantize(story, out, recipe="int4", algorithm="awq", calibration=ids, progress=events.append)
    assert "layer 1 " not in next(event.note for event in events if event.stage == "calibrate")
    whole = quantize(story, tmp_path / "whole", recipe="int4", algorithm="awq", calibration=ids)
    assert _bytes(resumed) == _bytes(whole)


# ---------------------------------------------------------------------- before the work


def test_too_little_memory_is_refused_before_the_work(tiny: Tiny, tmp_path: Path, ids: Path) -> None:
    for algorithm in ("gptq", "mse"):
        with pytest.raises(BudgetRefused, match="of memory") as caught:
            quantize(tiny("llama"), tmp_path / "out", algorithm=algorithm, calibration=ids, max_ram=100_000_000)
        assert caught.value.exit_code == 3
        assert "allow" in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_the_preview_tells_what_it_will_take(tiny: Tiny, ids: Path) -> None:
    plan = preview(tiny("llama"), algorithm="gptq", calibration=ids)
    assert "of memory" in plan.notes[0]
    assert not preview(tiny("llama"), algorithm="mse").notes


def test_without_text_a_plainer_algorithm_takes_over_and_the_plan_says_so(
    tiny: Tiny, tmp_path: Path, ids: Path
) -> None:
    bare = copytree(tiny("llama").path, tmp_path / "bare", ignore=ignore_patterns("tokenizer*"))
    manifest = bare / "aiasst.json"
    data = ModelFolder.open(tiny("llama").path).manifest
    kept = {name: record for name, record in data.files.items() if not name.startswith("tokenizer")}
    manifest.write_text(data.model_copy(update={"files": kept}).to_json(), encoding="utf-8")
    assert "no tokenizer" in preview(bare, algorithm="gptq").notes[0]
    record = quantize(bare, tmp_path / "out", algorithm="gptq").manifest.quantization
    assert record is not None
    assert (record.algorithm, record.calibration) == ("mse", None)
    assert "of memory" in preview(bare, algorithm="gptq", calibration=ids).notes[0]


def test_a_graph_that_reads_no_tokens_is_rounded_plainly(tmp_path: Path, ids: Path) -> None:
    source = graphs.product(tmp_path / "m.onnx", graphs.random(256, 32))
    plan = preview(source, algorithm="gptq", calibration=ids)
    assert "gptq gives way to mse" in plan.notes[0]
    record = quantize(source, tmp_path / "out", algorithm="gptq", calibration=ids).manifest.quantization
    assert record is not None
    assert record.calibration is not None
    assert (record.algorithm, record.calibration.used) == ("mse", False)


def test_progress_runs_from_nothing_to_everything(tiny: Tiny, tmp_path: Path, ids: Path) -> None:
    events: list[Progress] = []
    _gemma(tiny, tmp_path / "out", ids, progress=events.append)
    mine = [event for event in events if event.stage == "calibrate"]
    assert mine[0].done == 0
    assert mine[-1].done == pytest.approx(mine[-1].total)
    assert all(a.done <= b.done for a, b in pairwise(mine))
    assert "layer 9 of 9, error so far 0.0" in mine[-1].note
    assert "left" in mine[-1].note
