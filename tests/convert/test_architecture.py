"""What the configuration says, default by default: windows, context, special tokens, and the words for what nobody knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aiasst.artifacts.model_folder import Source
from aiasst.convert.architecture import nobody_exports, read_architecture
from aiasst.convert.sources import Checkpoint
from aiasst.errors import CheckpointError, UnsupportedModelError

BASE = {
    "vocab_size": 105, "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def checkpoint(folder: Path, model_type: str, **values: Any) -> Checkpoint:
    config = {**BASE, "model_type": model_type, **values}
    (folder / "config.json").write_text(json.dumps(config))
    return Checkpoint(folder, config, model_type, Source(kind="folder", name="x"))


@pytest.mark.parametrize(
    ("model_type", "values", "windows"),
    [
        ("llama", {}, (None,) * 4),
        ("mistral", {"sliding_window": 16}, (16,) * 4),
        ("mistral", {"sliding_window": None}, (None,) * 4),
        ("mistral", {"sliding_window": 256}, (None,) * 4),
        ("phi3", {"sliding_window": 32, "pad_token_id": 0}, (32,) * 4),
        ("qwen2", {"sliding_window": 16, "use_sliding_window": False}, (None,) * 4),
        ("qwen2", {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 3}, (None, None, None, 16)),
        ("gemma2", {"sliding_window": 16}, (16, None, 16, None)),
        ("gemma3_text", {"sliding_window": 16, "num_hidden_layers": 6}, (16, 16, 16, 16, 16, None)),
    ],
)
def test_the_window_of_every_layer(
    tmp_path: Path, model_type: str, values: dict[str, Any], windows: tuple[int | None, ...]
) -> None:
    assert read_architecture(checkpoint(tmp_path, model_type, **values)).layer_windows == windows


def test_another_kind_of_layer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="chunked_attention"):
        read_architecture(checkpoint(tmp_path, "llama", layer_types=["full_attention"] * 3 + ["chunked_attention"]))


def test_longrope_ends_at_its_original_length(tmp_path: Path) -> None:
    rope = {
        "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    made = checkpoint(
        tmp_path, "phi3", rope_parameters=rope, original_max_position_embeddings=64, pad_token_id=0
    )  # fmt: skip
    assert read_architecture(made).context_length == 64


def test_numbers_that_other_families_name_otherwise(tmp_path: Path) -> None:
    names = {"n_embd": 48, "n_layer": 3, "n_head": 6, "n_positions": 128, "vocab_size": 105}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", **names}))
    found = read_architecture(Checkpoint(tmp_path, {}, "gpt2", Source(kind="folder", name="x")))
    assert (found.hidden_size, found.layers, found.heads, found.kv_heads, found.context_length) == (48, 3, 6, 6, 128)
    assert found.tied_embedding


@pytest.mark.parametrize(
    ("generation", "ends"),
    [(None, (2,)), ({}, (2,)), ({"eos_token_id": 7}, (7, 2)), ({"eos_token_id": [7, 2, 9]}, (7, 2, 9))],
)
def test_every_end_of_text_is_known(tmp_path: Path, generation: Any, ends: tuple[int, ...]) -> None:
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert read_architecture(checkpoint(tmp_path, "llama")).tokens.eos == ends


def test_a_missing_number_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="num_hidden_layers"):
        read_architecture(checkpoint(tmp_path, "llama", num_hidden_layers=0))


def test_an_unknown_type_gets_its_neighbours_and_a_known_one_other_advice() -> None:
    unknown = nobody_exports("qwenn3", "text-generation", ["mobius does not know it"])
    assert "'qwenn3' for text-generation; mobius does not know it" in unknown.message
    assert "qwen3" in unknown.hint
    assert "--task" in nobody_exports("bert", "text-generation").hint


def test_positions_that_begin_after_the_padding_are_fewer(tmp_path: Path) -> None:
    found = read_architecture(checkpoint(tmp_path, "roberta", max_position_embeddings=514, pad_token_id=1))
    assert found.context_length == 512
