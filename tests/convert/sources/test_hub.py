"""A hub repository becomes a local checkpoint: only what is needed, resumed when it breaks, and every refusal in words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save, save_file

from aiasst.convert.sources import resolve
from aiasst.errors import CheckpointError, NetworkError
from aiasst.progress import Progress
from tests.convert.sources import hub_server
from tests.convert.sources.hub_server import COMMIT, OLD_COMMIT, Hub

WEIGHTS = {"model.a": np.arange(300_000, dtype=np.float32), "model.b": np.ones((7, 9), np.float16)}
CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A folder with everything a repository may have, most of which nobody needs."""
    folder = tmp_path / "repository"
    (folder / "onnx").mkdir(parents=True)
    (folder / "1_Pooling").mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(WEIGHTS, folder / "model.safetensors")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "1_Pooling/config.json"):
        (folder / name).write_text(json.dumps({"of": name}))  # equal contents would be fetched once
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    for name in (
        "pytorch_model.bin",
        "onnx/model.onnx",
        "README.md",
        "consolidated.safetensors",
        "code.py",
        "tf_model.h5",
    ):
        (folder / name).write_bytes(b"not needed")
    return folder


@pytest.fixture
def hub(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1 << 16)
    # Waiting between attempts is huggingface_hub's; here it would only take time.
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with hub_server.serve(repository) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        yield served


def half_files(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache").rglob("*.incomplete"))


def test_a_repository_becomes_a_checkpoint(hub: Hub) -> None:
    with resolve("org/tiny") as checkpoint:
        assert checkpoint.config == CONFIG
        assert checkpoint.model_type == "llama"
        weights = load_file(checkpoint.path / "model.safetensors")
        np.testing.assert_array_equal(weights["model.a"], WEIGHTS["model.a"])
        assert (checkpoint.path / "1_Pooling" / "config.json").exists()
    source = checkpoint.source
    assert (source.kind, source.name, source.revision) == ("hub", "org/tiny", COMMIT)


def test_only_what_is_needed_is_fetched_and_only_once(hub: Hub) -> None:
    with resolve("org/tiny"):
        pass
    assert hub.fetched() == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "chat_template.jinja",
        "1_Pooling/config.json",
    }
    hub.asked.clear()
    with resolve("org/tiny"):
        pass
    assert hub.fetched() == set()


def test_modules_that_are_named_come_along(hub: Hub) -> None:
    rows = [
        {"path": place, "type": f"m.{place[2:] or 'Transformer'}"} for place in ("", "1_Pooling", "2_Dense", "3_Dense")
    ]
    hub.files["modules.json"] = json.dumps(rows).encode()
    hub.files["2_Dense/config.json"] = b'{"in_features": 2}'
    hub.files["2_Dense/model.safetensors"] = save({"linear.weight": np.ones((1, 2), np.float32)})
    for place in ("2_Dense", "3_Dense"):
        hub.files[f"{place}/pytorch_model.bin"] = f"a pickle of {place}".encode()
    fetched = {"2_Dense/config.json", "2_Dense/model.safetensors"}
    with resolve("org/tiny"):
        assert {name for name in hub.fetched() if "Dense" in name} == fetched
    with resolve("org/tiny", allow_pickle=True):
        assert {name for name in hub.fetched() if "Dense" in name} == {*fetched, "3_Dense/pytorch_model.bin"}


def test_python_files_come_only_when_they_are_trusted(hub: Hub) -> None:
    with resolve("org/tiny", trust_remote_code=True) as checkpoint:
        assert (checkpoint.path / "code.py").exists()


def test_a_revision_is_asked_for(hub: Hub) -> None:
    with resolve("org/tiny", revision="v1") as checkpoint:
        assert checkpoint.source.revision == OLD_COMMIT
    with resolve("org/tiny", revision=COMMIT) as checkpoint:
        assert checkpoint.source.revision == COMMIT
    with pytest.raises(CheckpointError, match="no revision 'nope'"), resolve("org/tiny", revision="nope"):
        pass


def test_shards_come_by_the_index_and_nothing_beside(hub: Hub) -> None:
    del hub.files["model.safetensors"]
    names = {"model.a": "model-00001-of-00002.safetensors", "model.b": "odd name.safetensors"}
    for tensor, shard in names.items():
        hub.files[shard] = save({tensor: WEIGHTS[tensor]})
    hub.files["model.safetensors.index.json"] = json.dumps({"weight_map": names}).encode()
    with resolve("org/tiny") as checkpoint:
        for tensor, shard in names.items():
            np.testing.assert_array_equal(load_file(checkpoint.path / shard)[tensor], WEIGHTS[tensor])
    assert "consolidated.safetensors" not in hub.fetched()


def test_an_index_beside_the_whole_file_is_left_there(hub: Hub) -> None:
    hub.files["model.safetensors.index.json"] = json.dumps({"weight_map": {"a": "model-1.safetensors"}}).encode()
    with resolve("org/tiny") as checkpoint:
        assert not (checkpoint.path / "model.safetensors.index.json").exists()


def test_an_index_that_leaves_the_folder_is_refused(hub: Hub) -> None:
    del hub.files["model.safetensors"]
    hub.files["model.safetensors.index.json"] = json.dumps({"weight_map": {"a": "../../etc/passwd"}}).encode()
    with pytest.raises(CheckpointError, match="outside the folder"), resolve("org/tiny"):
        pass


def test_a_download_that_is_cut_is_resumed_where_it_broke(hub: Hub) -> None:
    hub.cuts["model.safetensors"] = 2
    with resolve("org/tiny") as checkpoint:
        np.testing.assert_array_equal(load_file(checkpoint.path / "model.safetensors")["model.a"], WEIGHTS["model.a"])
    ranges = [line for line in hub.asked if line.startswith("GET") and "bytes=" in line]
    assert len(ranges) == 2
    size = len(hub.files["model.safetensors"])
    begun = [int(line.rpartition("bytes=")[2].rstrip("-")) for line in ranges]
    assert size // 3 < begun[0] < begun[1] < size


def test_a_connection_that_is_reset_is_tried_again(hub: Hub) -> None:
    hub.resets["model.safetensors"] = 1
    with resolve("org/tiny") as checkpoint:
        np.testing.assert_array_equal(load_file(checkpoint.path / "model.safetensors")["model.a"], WEIGHTS["model.a"])


def test_a_download_that_stays_broken_leaves_no_half_model_and_the_next_run_finishes(hub: Hub, tmp_path: Path) -> None:
    hub.resets["model.safetensors"] = 1000
    with pytest.raises(NetworkError) as caught, resolve("org/tiny"):
        pass
    assert "broke off" in caught.value.message
    assert "again" in caught.value.hint
    assert half_files(tmp_path) == []
    assert not list((tmp_path / "cache").rglob("model.safetensors"))
    hub.resets.clear()
    hub.asked.clear()
    with resolve("org/tiny") as checkpoint:
        np.testing.assert_array_equal(load_file(checkpoint.path / "model.safetensors")["model.a"], WEIGHTS["model.a"])
    assert hub.fetched() == {"model.safetensors"}


def test_progress_counts_bytes_to_the_end(hub: Hub) -> None:
    told: list[Progress] = []
    with resolve("org/tiny", progress=told.append):
        pass
    bytes_of_weights = [p for p in told if p.stage == "download" and p.total >= len(hub.files["model.safetensors"])]
    assert bytes_of_weights[-1].done == bytes_of_weights[-1].total
    assert [p.done for p in bytes_of_weights] == sorted(p.done for p in bytes_of_weights)


def test_an_unknown_repository(hub: Hub) -> None:
    with pytest.raises(CheckpointError) as caught, resolve("org/absent"):
        pass
    assert "no repository org/absent" in caught.value.message
    assert hub.url in caught.value.message
    assert "HF_TOKEN" in caught.value.hint


def test_a_gated_repository(hub: Hub) -> None:
    hub.gated = True
    with pytest.raises(CheckpointError) as caught, resolve("org/tiny"):
        pass
    assert "restricted" in caught.value.message
    assert "HF_TOKEN" in caught.value.hint


@pytest.mark.parametrize("status", [401, 403])
def test_refused_access(hub: Hub, status: int) -> None:
    hub.status = status
    with pytest.raises(CheckpointError) as caught, resolve("org/tiny"):
        pass
    assert "HF_TOKEN" in caught.value.hint


def test_a_hub_in_trouble(hub: Hub) -> None:
    hub.status = 500
    with pytest.raises(NetworkError, match="HTTP 500"), resolve("org/tiny"):
        pass


def test_no_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(NetworkError) as caught, resolve("org/tiny"):
        pass
    assert "http://127.0.0.1:9 does not answer" in caught.value.message


def test_without_network_the_cache_serves(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with resolve("org/tiny"):
        pass
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with resolve("org/tiny") as checkpoint:
        assert checkpoint.source.revision == COMMIT


def drop_safetensors(hub: Hub) -> None:
    for name in [name for name in hub.files if name.endswith(".safetensors")]:
        del hub.files[name]


def test_a_repository_without_safetensors_names_the_pickle_and_the_flag(hub: Hub) -> None:
    drop_safetensors(hub)
    with pytest.raises(CheckpointError) as caught, resolve("org/tiny"):
        pass
    assert "pytorch_model.bin" in caught.value.message
    assert "--allow-pickle" in caught.value.hint
    assert "pytorch_model.bin" not in hub.fetched()


def test_allowed_pickles_are_fetched_and_rewritten(hub: Hub, tmp_path: Path) -> None:
    import torch

    drop_safetensors(hub)
    torch.save({"model.a": torch.arange(5.0)}, tmp_path / "p")
    hub.files["pytorch_model.bin"] = (tmp_path / "p").read_bytes()
    with resolve("org/tiny", allow_pickle=True) as checkpoint:
        assert load_file(checkpoint.path / "model.safetensors")["model.a"].tolist() == [0, 1, 2, 3, 4]
        assert (checkpoint.source.kind, checkpoint.source.name) == ("hub", "org/tiny")


def test_a_repository_with_gguf_only_says_how_to_use_it(hub: Hub) -> None:
    drop_safetensors(hub)
    del hub.files["pytorch_model.bin"]
    hub.files["tiny-Q4.gguf"] = b"GGUF"
    with pytest.raises(CheckpointError) as caught, resolve("org/tiny"):
        pass
    assert "tiny-Q4.gguf" in caught.value.hint


SCRIPT = """
import sys
from aiasst.convert.sources import resolve
from aiasst.errors import AiasstError
try:
    with resolve("org/tiny") as checkpoint:
        print(checkpoint.source.revision)
except AiasstError as error:
    print(type(error).__name__, error.message)
import huggingface_hub.constants as constants
print("telemetry off:", constants.HF_HUB_DISABLE_TELEMETRY)
"""


@pytest.fixture
def in_a_process(hub: Hub, tmp_path: Path) -> Callable[..., str]:
    """Resolve org/tiny in a process of its own, where the environment is read as in real life."""

    def start(**environment: str) -> str:
        own = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url, **environment}
        ended = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, env=own)
        return ended.stdout

    return start


def test_offline_means_the_cache_and_nothing_else(hub: Hub, in_a_process: Callable[..., str]) -> None:
    said = in_a_process(HF_HUB_OFFLINE="1")
    assert said.startswith("NetworkError org/tiny is not completely in the local cache, and HF_HUB_OFFLINE")
    assert hub.asked == []
    said = in_a_process()
    assert said.splitlines() == [COMMIT, "telemetry off: True"]
    hub.asked.clear()
    assert in_a_process(HF_HUB_OFFLINE="1").startswith(COMMIT)
    assert hub.asked == []
