"""The model folder appears whole or not at all, and a damaged one is recognised."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiasst.artifacts.model_folder import (
    MANIFEST_NAME,
    Manifest,
    ModelFolder,
    Quantization,
    Source,
    Twin,
    Weight,
    record_files,
    staged_folder,
    write_manifest,
)
from aiasst.errors import ArtifactError, ResourceError


def write_model(folder: Path, content: bytes = b"graph") -> None:
    (folder / "model.onnx").write_bytes(content)
    manifest = Manifest(
        aiasst_version="0",
        task="text-generation",
        exporter="none",
        source=Source(kind="folder", name="test"),
        shape=None,
        weights={"w": Weight(role="other", layer=None, shape=(2, 3), format="fp32", bytes=24)},
        files=record_files(folder),
    )
    write_manifest(folder, manifest)


def model_in(folder: Path) -> ModelFolder:
    with staged_folder(folder) as staging:
        write_model(staging)
    return ModelFolder.open(folder)


def test_round_trip(tmp_path: Path) -> None:
    model = model_in(tmp_path / "m")
    assert model.manifest.files["model.onnx"].bytes == 5
    model.check_hashes()
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), staged_folder(tmp_path / "m") as staging:
        write_model(staging)
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_failure_with_force_keeps_the_old_one(tmp_path: Path) -> None:
    model_in(tmp_path / "m")
    with pytest.raises(ZeroDivisionError), staged_folder(tmp_path / "m", force=True) as staging:
        write_model(staging, b"other")
        _ = 1 / 0
    assert (tmp_path / "m" / "model.onnx").read_bytes() == b"graph"
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_force_replaces_only_model_folders(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="already exists"), staged_folder(model_in(tmp_path / "m").path):
        pass
    with staged_folder(tmp_path / "m", force=True) as staging:
        write_model(staging, b"newer")
    assert (tmp_path / "m" / "model.onnx").read_bytes() == b"newer"
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"meow")
    with pytest.raises(ArtifactError, match="not a model folder"), staged_folder(tmp_path / "photos", force=True):
        pass
    assert (tmp_path / "photos" / "cat.jpg").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_is_an_error_in_words(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="disk is full"), staged_folder(tmp_path / "m"):
        Path("/dev/full").write_bytes(b"x" * 100_000)
    assert list(tmp_path.iterdir()) == []


def test_foreign_os_errors_pass_through(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="loop"), staged_folder(tmp_path / "m"):
        raise OSError(errno.ELOOP, "loop")


def test_missing_folder_and_checkpoint_get_different_hints(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no folder"):
        ModelFolder.open(tmp_path / "absent")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ArtifactError, match="checkpoint") as caught:
        ModelFolder.open(tmp_path)
    assert "aiasst convert" in caught.value.hint


def test_damage_is_found(tmp_path: Path) -> None:
    model = model_in(tmp_path / "m")
    graph = model.path / "model.onnx"
    graph.write_bytes(b"grapf")
    with pytest.raises(ArtifactError, match="has changed"):
        ModelFolder.open(model.path).check_hashes()
    graph.write_bytes(b"longer graph")
    with pytest.raises(ArtifactError, match="12 bytes"):
        ModelFolder.open(model.path)
    graph.unlink()
    with pytest.raises(ArtifactError, match=r"model\.onnx is missing"):
        ModelFolder.open(model.path)


def edit_manifest(folder: Path, old: str, new: str) -> None:
    text = (folder / MANIFEST_NAME).read_text()
    assert old in text
    (folder / MANIFEST_NAME).write_text(text.replace(old, new))


def test_unknown_key_and_version_are_refused(tmp_path: Path) -> None:
    folder = model_in(tmp_path / "m").path
    edit_manifest(folder, '"exporter": "none"', '"exporter": "none", "colour": "blue"')
    with pytest.raises(ArtifactError, match="unknown key 'colour'"):
        ModelFolder.open(folder)
    edit_manifest(folder, '"schema_version": 1', '"schema_version": 99')
    with pytest.raises(ArtifactError, match="schema version 99"):
        ModelFolder.open(folder)
    (folder / MANIFEST_NAME).write_text("{")
    with pytest.raises(ArtifactError, match="not valid JSON"):
        ModelFolder.open(folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret"])
def test_a_path_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("x")
    folder = model_in(tmp_path / "m").path
    edit_manifest(folder, '"model.onnx":', f'"{name}":')
    with pytest.raises(ArtifactError, match="leaves the folder"):
        ModelFolder.open(folder)


@given(
    shape=st.lists(st.integers(1, 2**20), min_size=1, max_size=3),
    layer=st.none() | st.integers(0, 200),
    size=st.integers(0, 2**50),
)
def test_manifest_survives_json(shape: list[int], layer: int | None, size: int) -> None:
    weight = Weight(role="down", layer=layer, shape=tuple(shape), format="int4-b128", bytes=size)
    assert Weight.model_validate_json(weight.to_json()) == weight


def with_twin(path: Path) -> ModelFolder:
    """A folder of two forms: `w` of the second lies in the first one's file, `v` in its own."""
    folder = model_in(path)
    (path / "twin.onnx").write_bytes(b"second graph")
    (path / "twin.onnx.data").write_bytes(bytes(100))
    rows = {
        "w": Weight(role="other", layer=None, shape=(2, 3), format="fp32", bytes=0, shared_with="w"),
        "v": Weight(role="other", layer=None, shape=(10, 10), format="w8a8", bytes=100),
    }
    twin = Twin(quantization=Quantization(recipe="w8a8", algorithm="rtn", bits_per_weight=8), weights=rows)
    write_manifest(path, folder.manifest.model_copy(update={"twin": twin, "files": record_files(path)}))
    return ModelFolder.open(path)


def test_a_folder_of_two_forms(tmp_path: Path) -> None:
    folder = with_twin(tmp_path / "m")
    folder.check_hashes()
    assert ModelFolder.open(folder.path).manifest == folder.manifest
    assert (folder.weight_bytes, folder.twin_bytes) == (5, 112)
    assert folder.twin_weight_bytes == 112 + 24
    assert folder.identity != model_in(tmp_path / "one").identity


def test_a_folder_of_one_form_is_written_and_known_as_ever(tmp_path: Path) -> None:
    folder = model_in(tmp_path / "m")
    assert "twin" not in (folder.path / MANIFEST_NAME).read_text()
    assert (folder.twin_bytes, folder.twin_weight_bytes) == (0, 0)


@pytest.mark.parametrize("name", ["twin.onnx", "twin.onnx.data"])
def test_a_second_form_that_is_not_whole_is_refused(tmp_path: Path, name: str) -> None:
    folder = with_twin(tmp_path / "m")
    content = (folder.path / name).read_bytes()
    (folder.path / name).write_bytes(content[:-1] + b"?")
    with pytest.raises(ArtifactError, match=f"{name} has changed"):
        ModelFolder.open(folder.path).check_hashes()
    (folder.path / name).write_bytes(content[:-1])
    with pytest.raises(ArtifactError, match=f"{len(content) - 1} bytes, the manifest says"):
        ModelFolder.open(folder.path)
    (folder.path / name).unlink()
    with pytest.raises(ArtifactError, match=f"incomplete: {name} is missing"):
        ModelFolder.open(folder.path)
    files = {known: record for known, record in folder.manifest.files.items() if known != name}
    write_manifest(folder.path, folder.manifest.model_copy(update={"files": files}))
    with pytest.raises(ArtifactError, match=r"tells of a second form, and lists no twin\.onnx"):
        ModelFolder.open(folder.path)
