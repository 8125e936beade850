"""Pickled weights are refused, then read without running what is in them, then gone from the way."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from aiasst.convert.sources import resolve
from aiasst.errors import CheckpointError

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "pickled"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "tokenizer.json").write_text("{}")
    return path


def weights() -> dict[str, torch.Tensor]:
    shared = torch.arange(12.0).reshape(3, 4)
    return {
        "embed": shared,
        "head": shared,  # tied: one storage under two names
        "turned": torch.arange(6.0).reshape(2, 3).T,  # not contiguous
        "part": torch.arange(10.0)[3:5],  # a window of a larger storage
        "half": torch.ones(3, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 4),
        "number": torch.tensor(7, dtype=torch.int64),
    }


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "last.ckpt"])
def test_without_the_flag_the_file_and_the_flag_are_named(folder: Path, name: str) -> None:
    torch.save(weights(), folder / name)
    with pytest.raises(CheckpointError) as caught, resolve(str(folder)):
        pass
    assert name in caught.value.message
    assert "--allow-pickle" in caught.value.hint


@pytest.mark.parametrize("zipped", [True, False])
def test_with_the_flag_they_become_safetensors(folder: Path, zipped: bool) -> None:
    torch.save(weights(), folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with resolve(str(folder), allow_pickle=True) as checkpoint:
        assert checkpoint.path != folder
        read = load_file(checkpoint.path / "model.safetensors")
        assert (checkpoint.path / "tokenizer.json").exists()
        assert not list(checkpoint.path.glob("*.bin"))
        assert (checkpoint.source.kind, checkpoint.source.name) == ("folder", "pickled")
    assert not checkpoint.path.exists()
    assert set(read) == set(weights())
    for name, tensor in weights().items():
        assert read[name].dtype == tensor.dtype, name
        assert torch.equal(read[name], tensor), name
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "pytorch_model.bin", "tokenizer.json"]


def test_shards_follow_the_index(folder: Path) -> None:
    torch.save({"a": torch.ones(2)}, folder / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": torch.zeros(3)}, folder / "pytorch_model-00002-of-00002.bin")
    index = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    with resolve(str(folder), allow_pickle=True) as checkpoint:
        written = json.loads((checkpoint.path / "model.safetensors.index.json").read_text())["weight_map"]
        assert load_file(checkpoint.path / written["b"])["b"].tolist() == [0, 0, 0]
        assert set(written) == {"a", "b"}


def test_what_a_trainer_leaves_behind_is_no_weight(folder: Path) -> None:
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"x": torch.ones(1)}, folder / name)
    with pytest.raises(CheckpointError, match="has no weights"), resolve(str(folder), allow_pickle=True):
        pass


class Malice:
    """Runs code when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.write_text, (self.proof, "ran")


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_refused_and_never_runs(folder: Path, tmp_path: Path, zipped: bool) -> None:
    proof = tmp_path / "proof"
    torch.save({"w": Malice(proof)}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError) as caught, resolve(str(folder), allow_pickle=True):
        pass
    assert "pytorch_model.bin was refused" in caught.value.message
    assert not proof.exists()
    # The proof would have been given: the same file, read without care, runs its code.
    pickle.loads(pickle.dumps(Malice(proof)))
    assert proof.read_text() == "ran"


def test_damaged_files_are_named(folder: Path) -> None:
    path = folder / "pytorch_model.bin"
    torch.save(weights(), path)
    whole = path.read_bytes()
    for content in (b"", b"garbage", whole[: len(whole) // 2], b"PK\x03\x04" + bytes(50)):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"), resolve(str(folder), allow_pickle=True):
            pass
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/readme", "no pickle in here")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"), resolve(str(folder), allow_pickle=True):
        pass


@pytest.mark.parametrize("content", [{}, [torch.ones(1)], {"epoch": 3}, {"w": torch.ones(2).to_sparse()}])
def test_what_is_no_table_of_weights_is_refused(folder: Path, content: object) -> None:
    torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"), resolve(str(folder), allow_pickle=True):
        pass


def test_a_wrapped_state_is_found(folder: Path) -> None:
    torch.save({"epoch": 3, "state_dict": {"w": torch.ones(2)}}, folder / "model.ckpt")
    with resolve(str(folder), allow_pickle=True) as checkpoint:
        assert load_file(checkpoint.path / "model.safetensors")["w"].tolist() == [1, 1]
