"""What a user names is found: a path before a hub id, and never the network for what looks like a path."""

from __future__ import annotations

import errno
import json
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from aiasst.convert import sources
from aiasst.convert.sources import classify, pickled, resolve
from aiasst.errors import AiasstError, CheckpointError, ResourceError, UsageError


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "org" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "extra": [1]}))
    save_file({"a": np.ones(3, np.float32)}, folder / "model.safetensors")
    return folder


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_a_folder_is_taken_as_it_is(checkpoint: Path) -> None:
    with resolve(str(checkpoint)) as found:
        assert found.path == checkpoint
        assert found.config == {"model_type": "llama", "extra": [1]}
        assert found.source.kind == "folder"
        assert found.source.revision is None
    assert checkpoint.exists()


def test_the_name_is_never_a_path(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkpoint)
    for name in (str(checkpoint), ".", "../tiny/", f"{checkpoint}/"):
        with resolve(name) as found:
            assert found.source.name == "tiny"


def test_a_path_wins_over_a_hub_id(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, no_network: None) -> None:
    monkeypatch.chdir(checkpoint.parent.parent)
    assert classify("org/tiny") == "folder"
    with resolve("org/tiny") as found:
        assert found.source.kind == "folder"
    assert classify("org/other") == "hub"


@pytest.mark.parametrize(
    "name",
    ["./absent", "/absent", "~/absent", "absent", "a/b/c", "org/absent/", "../x", "org/m.gguf", "a\\b", "C:\\m", "org/x y",
     "org/model.safetensors", "https://huggingface.co/org/tiny"],
)  # fmt: skip
def test_what_looks_like_a_path_never_asks_the_network(
    name: str, no_network: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "deep")
    with pytest.raises(CheckpointError, match="there is no such folder") as caught, resolve(name):
        pass
    assert name in caught.value.message
    assert "org/name" in caught.value.hint


@pytest.mark.parametrize("name", ["", "  "])
def test_nothing_is_no_model(name: str) -> None:
    with pytest.raises(UsageError):
        classify(name)


def test_a_revision_of_a_folder_makes_no_sense(checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="revision"), resolve(str(checkpoint), revision="main"):
        pass


def test_a_file_that_is_no_gguf_is_no_checkpoint(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="is a file") as caught:
        classify(str(checkpoint / "model.safetensors"))
    assert "folder" in caught.value.hint
    (checkpoint / "no-suffix").write_bytes(b"GGUF and so on")
    assert classify(str(checkpoint / "no-suffix")) == "gguf"


def test_a_full_disk_is_said_and_nothing_stays(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    (checkpoint / "model.safetensors").unlink()
    torch.save({"a": torch.ones(5)}, checkpoint / "pytorch_model.bin")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(sources.tempfile, "tempdir", str(temporary))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pickled.safetensors_file, "write", full)
    with pytest.raises(ResourceError, match="disk is full") as caught, resolve(str(checkpoint), allow_pickle=True):
        pass
    assert "TMPDIR" in caught.value.hint
    assert list(temporary.iterdir()) == []


def test_a_real_full_device_is_recognised(checkpoint: Path, tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    import torch

    (checkpoint / "model.safetensors").unlink()
    torch.save({"a": torch.ones(5000)}, checkpoint / "pytorch_model.bin")
    place = tmp_path / "place"
    place.mkdir()
    (place / "model.safetensors").symlink_to(full)
    with pytest.raises(ResourceError, match="disk is full"):
        pickled.rewrite(checkpoint, [checkpoint / "pytorch_model.bin"], place)


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def remove_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (break_config, ("config.json", "not valid JSON")),
        (remove_config, ("config.json", "no checkpoint")),
        (truncate, ("model.safetensors", "ends before 'a' does", "fetch the file again")),
        (only_pickle, ("pytorch_model.bin", "--allow-pickle")),
    ],
)
def test_the_program_says_it_and_leaves_nothing(
    damage: object, words: tuple[str, ...], checkpoint: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from aiasst.cli.app import main

    assert callable(damage)
    damage(checkpoint)
    monkeypatch.setattr(sys, "argv", ["aiasst", "convert", str(checkpoint), "-o", str(tmp_path / "out")])
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    said = capsys.readouterr()
    assert said.out == ""
    shown = " ".join(said.err.split())
    assert all(word in shown for word in words), shown
    assert sorted(p.name for p in tmp_path.iterdir()) == ["org"]


def test_every_error_of_resolve_is_ours(checkpoint: Path) -> None:
    checkpoint.joinpath("model.safetensors").unlink()
    with pytest.raises(AiasstError, match="has no weights"), resolve(str(checkpoint)):
        pass
