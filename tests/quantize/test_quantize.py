"""The stage as a whole, on models that convert wrote: the story checkpoint and tiny ones of odd shapes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aiasst.artifacts import signature
from aiasst.artifacts.model_folder import GRAPH_NAME, ModelFolder
from aiasst.artifacts.recipe import shipped_recipes
from aiasst.errors import ArtifactError, ExportError, ResourceError
from aiasst.quantize import QuantConfig, formats, job, preview, quantize
from aiasst.quantize.blockwise import Blockwise
from aiasst.runtime.session import GraphSession
from tests.quantize import graphs

Tiny = Callable[[str], ModelFolder]


def _outputs(folder: ModelFolder, ids: np.ndarray) -> np.ndarray:
    """Log-probabilities (decoders) or hidden states (encoders) of every position."""
    session = GraphSession.open(folder.graph)
    feeds: dict[str, Any] = {signature.INPUT_IDS: ids, signature.ATTENTION_MASK: np.ones_like(ids)}
    for name in session.input_names:
        if name == signature.TOKEN_TYPE_IDS:
            feeds[name] = np.zeros_like(ids)
        elif name not in feeds:
            _, heads, _, size = session.input_shape(name)
            feeds[name] = np.zeros((len(ids), int(heads or 0), 0, int(size or 0)), session.input_dtype(name))
    if signature.ALL_LOGITS in session.optional_names:
        feeds[signature.ALL_LOGITS] = np.array(True)
    result = session.run(feeds, [session.output_names[0]])[0].astype(np.float64)
    if session.output_names[0] == signature.LOGITS:
        result -= result.max(-1, keepdims=True)
        result -= np.log(np.exp(result).sum(-1, keepdims=True))
    return result


def _kl(original: np.ndarray, other: np.ndarray) -> float:
    """Mean KL divergence of log-probabilities [..., vocabulary], in nats."""
    return float((np.exp(original) * (original - other)).sum(-1).mean())


@pytest.mark.parametrize(
    ("recipe", "kl", "top1", "bits"),
    [
        ("int8", 0.003, 0.95, (8.2, 8.3)),
        ("w8a8", 0.005, 0.94, (8.1, 8.2)),
        ("int4", 0.05, 0.75, (4.8, 4.9)),
        ("int4-fast", 0.06, 0.75, (4.7, 4.8)),
        ("mixed", 0.03, 0.8, (5.6, 6.0)),
        ("int2-experimental", 0.8, 0.35, (3.2, 3.4)),
    ],
)
def test_the_story_model_stays_itself(
    story: ModelFolder, tmp_path: Path, recipe: str, kl: float, top1: float, bits: tuple[float, float]
) -> None:
    folder = quantize(story, tmp_path / "out", recipe=recipe, sequences=4)
    ids = np.array([story_tokens(story)])
    before, after = _outputs(story, ids), _outputs(folder, ids)
    assert _kl(before, after) < kl
    assert (before.argmax(-1) == after.argmax(-1)).mean() > top1
    record = folder.manifest.quantization
    assert record is not None
    assert bits[0] < record.bits_per_weight < bits[1]


def story_tokens(folder: ModelFolder) -> list[int]:
    """A passage in the manner of what the model was trained on."""
    from aiasst.tokenizer import Tokenizer

    passage = (
        "Once upon a time there was an old woman who lived by the sea with her three grandchildren. Every morning the "
        "eldest boy went down to the boats, and every evening he came back with a basket of fish and a story. “Tell us "
        "where you have been,” said the little girl, “and whether the king's ship has come home.” But the boy shook his "
        "head and sat down by the fire, for that day he had seen something upon the water which he could not explain."
    )
    return Tokenizer.load(folder.path).encode(passage)


def test_the_manifest_says_what_was_done(story: ModelFolder, tmp_path: Path) -> None:
    manifest = quantize(story, tmp_path / "out", recipe="int4", sequences=2).manifest
    rows = manifest.weights
    assert set(rows) == set(story.manifest.weights)
    qkv = rows["layers.3.qkv_proj.weight"]
    assert (qkv.role, qkv.layer, qkv.shape, qkv.format) == ("qkv", 3, (256, 512), "int4-b128")
    assert qkv.bytes == 512 * (128 + 2 * 4)
    assert rows["embed_tokens.weight"].format == rows["lm_head.weight"].format == "int8-b128"
    assert (rows["lm_head.weight"].bytes, rows["lm_head.weight"].shared_with) == (0, "embed_tokens.weight")
    assert rows["norm.weight"] == story.manifest.weights["norm.weight"]
    assert manifest.source == story.manifest.source
    assert manifest.verification is None
    total = sum(row.bytes for row in rows.values())
    assert total <= manifest.files["model.onnx.data"].bytes < total + 64 * len(rows)
    assert "tokenizer.json" in manifest.files


def test_the_same_recipe_gives_the_same_bytes(story: ModelFolder, tmp_path: Path) -> None:
    one, two = (quantize(story, tmp_path / name, recipe="mixed", sequences=2).manifest.files for name in ("one", "two"))
    for name in (GRAPH_NAME, "model.onnx.data"):
        assert one[name] == two[name]


def test_the_preview_is_what_happens(story: ModelFolder, tmp_path: Path) -> None:
    plan = preview(story, recipe="mixed")
    folder = quantize(story, tmp_path / "out", recipe="mixed", sequences=2)
    assert {w.matrix.name: w.bytes_after for w in plan.weights}.items() <= {
        name: row.bytes for name, row in folder.manifest.weights.items()
    }.items()
    assert abs(plan.bytes_after - folder.weight_bytes) < 0.02 * folder.weight_bytes
    assert folder.manifest.quantization is not None
    assert folder.manifest.quantization.bits_per_weight == pytest.approx(plan.bits_per_weight, abs=1e-3)


@pytest.mark.parametrize("recipe", sorted(shipped_recipes()))
@pytest.mark.parametrize("name", ["llama", "llama_tied", "gpt2", "bert"])
def test_odd_shapes_biases_and_encoders(tiny: Tiny, tmp_path: Path, name: str, recipe: str) -> None:
    source = tiny(name)
    folder = quantize(source, tmp_path / "out", recipe=recipe)
    ids = np.random.default_rng(5).integers(4, 105, (2, 20))
    before, after = _outputs(source, ids), _outputs(folder, ids)
    assert np.isfinite(after).all()
    assert folder.weight_bytes < 0.6 * source.weight_bytes
    if recipe in ("int8", "w8a8"):
        spread = np.linalg.norm(before - before.mean(axis=-1, keepdims=True))
        assert np.linalg.norm(after - before) < 0.1 * spread


def test_an_encoder_is_quantized_to_w8a8_unless_told_otherwise(tiny: Tiny, tmp_path: Path) -> None:
    folder = quantize(tiny("bert"), tmp_path / "out")
    assert folder.manifest.quantization is not None
    assert folder.manifest.quantization.recipe == "w8a8"
    assert folder.manifest.weights["layers.0.qkv_proj.weight"].format == "w8a8"
    assert folder.manifest.encoding == tiny("bert").manifest.encoding is not None
    assert preview(tiny("llama")).recipe.name == "int4"
    assert (folder.path / "card.json").is_file()


def test_biases_are_taken_into_the_products(tiny: Tiny, tmp_path: Path) -> None:
    folder = quantize(tiny("gpt2"), tmp_path / "out", recipe="int8")
    products = graphs.nodes(folder.graph, "MatMulNBits")
    assert sum(len(node.input) == 6 for node in products) == 8  # four products in each of two layers


def test_quantconfig_is_the_python_door(story: ModelFolder, tmp_path: Path) -> None:
    np.savez(tmp_path / "sample_data.npz", input_ids=np.arange(256).reshape(4, 64))
    config = QuantConfig(
        weight_bits=4,
        activation_bits=8,
        scheme="per-channel",
        calibration_dataset=str(tmp_path / "sample_data.npz"),
    )
    folder = config.apply(story, tmp_path / "small")
    assert folder.manifest.weights["layers.0.down_proj.weight"].format == "int4-b256"


def test_an_existing_output_is_kept_unless_forced(story: ModelFolder, tmp_path: Path) -> None:
    out = quantize(story, tmp_path / "out", recipe="int8").path
    with pytest.raises(ArtifactError, match="already exists"):
        quantize(story, out, recipe="int4", sequences=2)
    assert ModelFolder.open(out).manifest.quantization.recipe == "int8"  # type: ignore[union-attr]
    assert quantize(story, out, recipe="int4", sequences=2, force=True).manifest.quantization.recipe == "int4"  # type: ignore[union-attr]


def test_a_folder_is_never_replaced_by_itself(story: ModelFolder, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(story.path, tmp_path / "copy"))
    with pytest.raises(ArtifactError, match="source"):
        quantize(copy, copy, recipe="int8", force=True)
    ModelFolder.open(copy).check_hashes()


def test_a_small_disk_is_refused_before_the_work(
    story: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ResourceError, match="MB of disk"):
        quantize(story, tmp_path / "out", recipe="int8")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_leaves_nothing(
    story: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(job.WeightsFile, "write", full)
    with pytest.raises(ResourceError, match="disk is full"):
        quantize(story, tmp_path / "out", recipe="int8")
    assert not list(tmp_path.iterdir())


def test_a_result_that_does_not_run_leaves_nothing(
    story: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A format that packs the wrong shape must not get past the check."""
    original = Blockwise.pack

    def transposed(self: Blockwise, *args: Any) -> Any:
        values, *rest = original(self, *args)
        return (formats.Part(values.suffix, values.array.transpose(0, 2, 1).copy()), *rest)

    monkeypatch.setattr(Blockwise, "pack", transposed)
    with pytest.raises(ExportError, match="does not open"):
        quantize(story, tmp_path / "out", recipe="int4", algorithm="mse")
    assert not list(tmp_path.iterdir())


def test_a_missing_weight_file_is_said_at_once(story: ModelFolder, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(story.path, tmp_path / "copy"))
    (copy / "model.onnx.data").unlink()
    with pytest.raises(ArtifactError, match="incomplete"):
        quantize(copy, tmp_path / "out", recipe="int8")


def test_the_source_is_not_touched(story: ModelFolder, tmp_path: Path) -> None:
    quantize(story, tmp_path / "out", recipe="int4", sequences=2)
    story.check_hashes()
    assert (story.path / GRAPH_NAME).is_file()
