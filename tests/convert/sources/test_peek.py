"""A checkpoint is looked at before it is fetched: its config.json and the sizes of its files, and nothing else crosses the wire."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from aiasst.convert.sources.peek import peek
from aiasst.errors import CheckpointError, NetworkError, UsageError
from tests.convert.sources import hub_server
from tests.convert.sources.hub_server import COMMIT, OLD_COMMIT, Hub

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file({"a": np.zeros((64, 64), np.float16)}, folder / "model.safetensors")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"not needed")
    return folder


@pytest.fixture
def hub(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with hub_server.serve(repository) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        yield served


def test_only_the_configuration_is_fetched(hub: Hub, repository: Path) -> None:
    found = peek("org/tiny")
    assert {name.rpartition("/")[2] for name in hub.fetched()} == {"config.json"}
    assert found.config == CONFIG
    assert (found.name, found.revision) == ("org/tiny", COMMIT)
    assert found.weight_bytes == (repository / "model.safetensors").stat().st_size


def test_a_revision_is_asked_for(hub: Hub) -> None:
    assert peek("org/tiny", revision="v1").revision == OLD_COMMIT
    with pytest.raises(CheckpointError, match="no revision"):
        peek("org/tiny", revision="absent")


def test_shards_are_added_up(hub: Hub) -> None:
    whole = hub.files.pop("model.safetensors")
    hub.files |= {
        "model-00001-of-00002.safetensors": whole, "model-00002-of-00002.safetensors": whole,
        "model.safetensors.index.json": b"{}", "consolidated.safetensors": whole,
    }  # fmt: skip
    assert peek("org/tiny").weight_bytes == 2 * len(whole)


def test_pickles_are_counted_where_there_is_nothing_better(hub: Hub) -> None:
    del hub.files["model.safetensors"]
    assert peek("org/tiny").weight_bytes == len(b"not needed")


def test_a_repository_without_weights(hub: Hub) -> None:
    del hub.files["model.safetensors"], hub.files["pytorch_model.bin"]
    assert peek("org/tiny").weight_bytes is None


def test_a_repository_of_gguf_files_says_how_to_use_it(hub: Hub) -> None:
    del hub.files["config.json"]
    hub.files["tiny-q4.gguf"] = b"GGUF"
    with pytest.raises(CheckpointError, match=r"no config\.json") as refusal:
        peek("org/tiny")
    assert "tiny-q4.gguf" in refusal.value.hint


def test_an_unknown_repository_and_a_hub_in_trouble(hub: Hub) -> None:
    with pytest.raises(CheckpointError, match="has no repository"):
        peek("org/absent")
    hub.status = 503
    with pytest.raises(NetworkError):
        peek("org/tiny")


def test_what_was_seen_once_is_known_without_a_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    first = peek("org/tiny")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert peek("org/tiny") == first


def test_a_folder_and_a_file_are_read_where_they_lie(repository: Path) -> None:
    folder, file = peek(str(repository)), peek(str(repository / "config.json"))
    assert folder.config == file.config == CONFIG
    assert folder.weight_bytes == file.weight_bytes == (repository / "model.safetensors").stat().st_size
    assert folder.revision is None
    (repository / "model.safetensors").unlink()
    (repository / "pytorch_model.bin").unlink()
    assert peek(str(repository)).weight_bytes is None


def test_what_is_no_checkpoint_is_refused(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="revision"):
        peek(str(repository), revision="main")
    with pytest.raises(CheckpointError, match="no such folder"):
        peek(str(tmp_path / "absent"))
    (repository / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="not a JSON object"):
        peek(str(repository / "config.json"))
    with (repository / "config.json").open("wb") as file:
        file.truncate(100 * 2**20)
    with pytest.raises(CheckpointError, match="so large"):
        peek(str(repository))
    gguf = tmp_path / "tiny.gguf"
    gguf.write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match="here already"):
        peek(str(gguf))
