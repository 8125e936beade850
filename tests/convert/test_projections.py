"""An embedder with all that sentence-transformers puts behind it: the same vectors as its documented modules give in torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from aiasst.artifacts.encoding import Projection
from aiasst.artifacts.model_folder import ModelFolder
from aiasst.convert import convert, projections
from aiasst.engine.encode import Encoder
from aiasst.errors import CheckpointError
from aiasst.profile import quick_config
from aiasst.quantize import quantize
from tests import checkpoints

TEXTS = ["the cat sat on the mat", "in", "rather longer than the others are, and with a comma", "a man in the rain"]
PROMPTS = {"query": "find in the house: ", "passage": "read: "}
WIDE = 128


def dense(folder: Path, inputs: int, outputs: int, activation: str, **more: Any) -> None:
    generator = torch.Generator().manual_seed(inputs)
    folder.mkdir()
    config = {"in_features": inputs, "out_features": outputs, "bias": True, **more}
    config |= {"activation_function": f"torch.nn.modules.activation.{activation}"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = {
        "linear.weight": torch.randn((outputs, inputs), generator=generator) * 0.2,
        "linear.bias": torch.randn(outputs, generator=generator),
    }
    save_file(weights, folder / "model.safetensors")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BERT, pooled by its first token and by the mean, without the prompt, then 128 → 24 (tanh) → 24, then normalized."""
    folder = checkpoints.build("bert", tmp_path_factory.mktemp("embedder") / "checkpoint")
    kinds = {
        "": "Transformer",
        "1_Pooling": "Pooling",
        "2_Dense": "Dense",
        "3_Dense": "Dense",
        "4_Normalize": "Normalize",
    }
    rows = [
        {"idx": number, "name": str(number), "path": place, "type": f"sentence_transformers.models.{kind}"}
        for number, (place, kind) in enumerate(kinds.items())
    ]
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 64, "pooling_mode_cls_token": True, "include_prompt": False}
    pooling |= {"pooling_mode_mean_tokens": True}
    for name, content in (
        ("modules.json", rows),
        ("1_Pooling/config.json", pooling),
        ("config_sentence_transformers.json", {"prompts": PROMPTS, "default_prompt_name": None}),
    ):
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    dense(folder / "2_Dense", WIDE, 24, "Tanh")
    dense(folder / "3_Dense", 24, 24, "GELU", use_residual=True)
    return folder


@pytest.fixture(scope="session")
def folder(checkpoint: Path) -> ModelFolder:
    return convert(checkpoint, checkpoint.parent / "model")


def in_torch(checkpoint: Path, texts: list[str], prompt: str = "") -> np.ndarray:
    """What Transformer, Pooling, Dense and Normalize compute, text by text, as sentence-transformers documents them."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(checkpoint), AutoModel.from_pretrained(checkpoint).eval()
    skipped = len(tokenizer(prompt)["input_ids"]) - 1 if prompt else 0
    vectors = []
    for text in texts:
        with torch.inference_mode():
            hidden = model(**tokenizer(prompt + text, return_tensors="pt")).last_hidden_state[0, skipped:]
            vector = torch.cat([hidden[0], hidden.mean(0)])
            first, second = (load_file(checkpoint / name / "model.safetensors") for name in ("2_Dense", "3_Dense"))
            vector = torch.tanh(first["linear.weight"] @ vector + first["linear.bias"])
            vector = torch.nn.functional.gelu(second["linear.weight"] @ vector + second["linear.bias"]) + vector
            vectors.append(torch.nn.functional.normalize(vector, dim=0).numpy())
    return np.stack(vectors)


@pytest.mark.parametrize("prompt", [None, "query", "passage"])
def test_vectors_are_those_of_the_documented_modules(prompt: str | None, checkpoint: Path, folder: ModelFolder) -> None:
    encoder = Encoder(folder, quick_config(folder))
    found = encoder.encode(TEXTS, prompt=prompt)
    expected = in_torch(checkpoint, TEXTS, PROMPTS.get(prompt or "", ""))
    assert found.shape == (4, 24)
    assert (found * expected).sum(1).min() >= 0.99999
    np.testing.assert_allclose(found, expected, atol=1e-5)
    if prompt is not None:
        assert np.abs(found - encoder.encode(TEXTS)).max() > 1e-3


def test_the_numbers_travel_with_the_folder(
    folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {"2_Dense/weight.npy", "2_Dense/bias.npy", "3_Dense/weight.npy"} <= folder.manifest.files.keys()
    assert not [name for name in folder.manifest.files if name.endswith(".safetensors")]
    monkeypatch.setattr("aiasst.evaluate.encoders.DEFAULT_TOKENS", 256)
    small = quantize(folder, tmp_path / "w8a8")
    assert small.encoding == folder.encoding
    exact = Encoder(folder, quick_config(folder)).encode(TEXTS)
    assert (Encoder(small, quick_config(small)).encode(TEXTS) * exact).sum(1).min() > 0.98


def test_damaged_projections_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    declared = Projection(folder="2_Dense", inputs=WIDE, outputs=24)
    broken = tmp_path / "checkpoint"
    shutil.copytree(checkpoint / "2_Dense", broken / "2_Dense")
    weights = load_file(broken / "2_Dense" / "model.safetensors")

    def refused(said: str, *, allow_pickle: bool = False) -> None:
        with pytest.raises(CheckpointError, match=said):
            projections.write(broken, declared, tmp_path, allow_pickle=allow_pickle)

    save_file({"linear.weight": weights["linear.weight"]}, broken / "2_Dense" / "model.safetensors")
    refused("linear.bias of .* is missing")
    save_file(weights | {"linear.bias": torch.zeros(23)}, broken / "2_Dense" / "model.safetensors")
    refused(r"has the shape \(23,\), not \(24,\)")
    (broken / "2_Dense" / "model.safetensors").write_bytes(b"\xff" * 100)
    refused("not a sound safetensors file")
    (broken / "2_Dense" / "model.safetensors").unlink()
    refused("has no weights")
    torch.save(weights, broken / "2_Dense" / "pytorch_model.bin")
    refused("can carry code")
    projections.write(broken, declared, tmp_path, allow_pickle=True)
    found = np.load(tmp_path / "2_Dense" / "weight.npy", allow_pickle=False)
    assert np.array_equal(found, weights["linear.weight"].numpy())


def test_a_link_out_of_the_folder_is_not_followed(checkpoint: Path, tmp_path: Path) -> None:
    copied = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, copied)
    (tmp_path / "private.json").write_text("{}", encoding="utf-8")
    (copied / "2_Dense" / "config.json").unlink()
    (copied / "2_Dense" / "config.json").symlink_to(tmp_path / "private.json")
    with pytest.raises(CheckpointError, match="is a link to"):
        convert(copied, tmp_path / "model")
