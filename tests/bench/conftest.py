"""A tiny decoder as a model folder, and a config for it: one thread."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiasst.artifacts.device import DeviceConfig
from aiasst.artifacts.model_folder import GRAPH_NAME, Manifest, ModelFolder, Shape, Source, record_files, write_manifest
from aiasst.profile import quick_config
from tests.runtime.graphs import CONTEXT, HEAD_DIM, HEADS, HIDDEN, KV_HEADS, LAYERS, VOCABULARY, tiny_decoder

SHAPE = Shape(
    model_type="llama", layers=LAYERS, hidden_size=HIDDEN, vocab_size=VOCABULARY, context_length=CONTEXT,
    heads=HEADS, kv_heads=KV_HEADS, head_dim=HEAD_DIM,
)  # fmt: skip


def write_folder(path: Path, shape: Shape | None = SHAPE) -> ModelFolder:
    path.mkdir()
    tiny_decoder(path / GRAPH_NAME)
    manifest = Manifest(
        aiasst_version="0", task="text-generation", exporter="x", source=Source(kind="folder", name="x"),
        shape=shape, weights={}, files=record_files(path),
    )  # fmt: skip
    write_manifest(path, manifest)
    return ModelFolder.open(path)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return write_folder(tmp_path_factory.mktemp("bench") / "tiny")


@pytest.fixture(scope="session")
def alone() -> DeviceConfig:
    config = quick_config()
    threads = config.decisions.threads.model_copy(update={"value": 1})
    return config.model_copy(update={"decisions": config.decisions.model_copy(update={"threads": threads})})
