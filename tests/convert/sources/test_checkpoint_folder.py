"""A checkpoint folder is sound, or what is wrong with it is said before any weight is read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from aiasst.convert.sources import checkpoint_folder
from aiasst.errors import CheckpointError

CONFIG = {"model_type": "llama"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "tiny"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    return path


def shard(folder: Path, name: str, *tensors: str) -> None:
    save_file({tensor: np.ones(3, np.float32) for tensor in tensors}, folder / name)


def index(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON (line 1"),
        ("[1]", "not a JSON object"),
        ("{}", "no model_type"),
        ('{"model_type": 3}', "no model_type"),
        ('{"model_type": ""}', "no model_type"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_broken_configuration_is_said(folder: Path, text: str, words: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError) as caught:
        checkpoint_folder.read_config(folder)
    assert words in caught.value.message
    assert "config.json" in caught.value.message


def test_a_configuration_that_is_no_text(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match="not UTF-8"):
        checkpoint_folder.read_config(folder)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("adapter_config.json", "LoRA"),
        ("x.gguf", "x.gguf"),
        ("aiasst.json", "aiasst inspect"),
        ("nothing", "config.json"),
    ],
)
def test_a_folder_without_config_says_what_it_may_be(folder: Path, name: str, hint: str) -> None:
    (folder / "config.json").unlink()
    (folder / name).write_text("{}")
    with pytest.raises(CheckpointError, match=r"no config\.json") as caught:
        checkpoint_folder.read_config(folder)
    assert hint in caught.value.hint


def test_custom_code_needs_trust_only_where_transformers_lacks_the_model() -> None:
    own = {"model_type": "somebodys-own", "auto_map": {"AutoConfig": "code.Config"}}
    with pytest.raises(CheckpointError) as caught:
        checkpoint_folder.refuse_custom_code(own, trust_remote_code=False)
    assert "somebodys-own" in caught.value.message
    assert "--trust-remote-code" in caught.value.hint
    checkpoint_folder.refuse_custom_code(own, trust_remote_code=True)
    checkpoint_folder.refuse_custom_code({**own, "model_type": "llama"}, trust_remote_code=False)
    checkpoint_folder.refuse_custom_code({"model_type": "somebodys-own"}, trust_remote_code=False)


def test_weight_files_in_name_order(folder: Path) -> None:
    assert checkpoint_folder.safetensors_files(folder) == []
    shard(folder, "model-2.safetensors", "a")
    shard(folder, "model-1.safetensors", "z", "y")
    shard(folder, "consolidated.safetensors", "a")
    index(folder, {"a": "model-2.safetensors", "z": "model-1.safetensors", "y": "model-1.safetensors"})
    files = checkpoint_folder.safetensors_files(folder)
    assert [file.name for file in files] == ["model-1.safetensors", "model-2.safetensors"]


def test_a_missing_shard_and_a_missing_tensor_are_named(folder: Path) -> None:
    shard(folder, "model-1.safetensors", "a")
    index(folder, {"a": "model-1.safetensors", "b": "model-2.safetensors"})
    with pytest.raises(CheckpointError, match=r"model-2\.safetensors.*is missing"):
        checkpoint_folder.safetensors_files(folder)
    index(folder, {"a": "model-1.safetensors", "b": "model-1.safetensors"})
    with pytest.raises(CheckpointError, match=r"model-1\.safetensors has no tensor 'b'"):
        checkpoint_folder.safetensors_files(folder)


def test_an_index_beside_the_whole_file_must_not_lead_astray(folder: Path) -> None:
    shard(folder, "model.safetensors", "a")
    index(folder, {"a": "model.safetensors"})
    assert [file.name for file in checkpoint_folder.safetensors_files(folder)] == ["model.safetensors"]
    index(folder, {"a": "model-1.safetensors"})
    with pytest.raises(CheckpointError, match=r"names model-1\.safetensors, which is missing"):
        checkpoint_folder.safetensors_files(folder)


@pytest.mark.parametrize("name", ["../out.safetensors", "/etc/passwd", "a/../../b", "..\\b", "C:/x", ""])
def test_no_shard_leaves_the_folder(folder: Path, name: str) -> None:
    index(folder, {"a": name})
    with pytest.raises(CheckpointError, match="outside the folder"):
        checkpoint_folder.safetensors_files(folder)


@pytest.mark.parametrize("weight_map", [None, {}, [], {"a": 1}])
def test_an_index_without_sense(folder: Path, weight_map: object) -> None:
    index(folder, weight_map)
    with pytest.raises(CheckpointError, match="weight_map"):
        checkpoint_folder.safetensors_files(folder)


def test_a_truncated_file_is_found_without_reading_weights(folder: Path) -> None:
    shard(folder, "model.safetensors", "a", "b")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a sound safetensors file: it ends before"):
        checkpoint_folder.safetensors_files(folder)


def test_small_files_that_lead_elsewhere_are_refused(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("{}")
    (folder / "tokenizer.json").symlink_to(secret)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json .* is a link to"):
        checkpoint_folder.refuse_leading_links(folder)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to("config.json")
    checkpoint_folder.refuse_leading_links(folder)


def test_a_snapshot_of_a_hub_cache_is_made_of_links_and_sound(tmp_path: Path) -> None:
    cache = tmp_path / "models--org--tiny"
    snapshot = cache / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    (cache / "blobs" / "c0ffee").write_text(json.dumps(CONFIG))
    save_file({"a": np.ones(2, np.float32)}, cache / "blobs" / "beef")
    (snapshot / "config.json").symlink_to(Path("../../blobs/c0ffee"))
    (snapshot / "model.safetensors").symlink_to(Path("../../blobs/beef"))
    checkpoint_folder.refuse_leading_links(snapshot)
    assert checkpoint_folder.read_config(snapshot) == CONFIG
    assert len(checkpoint_folder.safetensors_files(snapshot)) == 1


def test_the_hash_is_that_of_the_files_one_after_the_other(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"two")
    told: list[float] = []
    digest = checkpoint_folder.sha256_of_all([tmp_path / "a", tmp_path / "b"], lambda p: told.append(p.done / p.total))
    assert digest == hashlib.sha256(b"onetwo").hexdigest()
    assert told == [0.5, 1.0]
