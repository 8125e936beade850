"""What can be known of a checkpoint before it is here: its config.json, and how large its weight files are. Reads no weight.

A hub id is asked for its config.json and its list of files; a folder or a config.json of one's own is read where it lies.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiasst.convert.sources import checkpoint_folder, classify, hub, no_telemetry
from aiasst.convert.sources.checkpoint_folder import CONFIG, PICKLE, SAFETENSORS
from aiasst.errors import CheckpointError, UsageError

_SHARD = re.compile(r"(?:model-\d+-of-\d+\.safetensors|pytorch_model-\d+-of-\d+\.bin)")


@dataclass(frozen=True)
class Peek:
    """A checkpoint that is known and not fetched."""

    name: str
    """As the user gave it."""
    config: Mapping[str, Any]
    """The parsed config.json: a foreign file."""
    revision: str | None
    """Commit of the hub repository."""
    weight_bytes: int | None
    """Of the weight files; None where there are none to be seen."""


def peek(model: str, *, revision: str | None = None) -> Peek:
    """Look at the checkpoint that `model` names: a folder, a config.json, or a hub id "org/name". A path that exists always wins.

    Raises:
        UsageError: `model` is empty, or a revision is given for something that has none.
        CheckpointError: no such folder or repository, or its configuration is broken.
        NetworkError: the hub does not answer.
    """
    path = Path(model).expanduser()
    local = path.is_file() and path.suffix == ".json"
    kind = "config.json" if local else classify(model)
    if revision is not None and kind != "hub":
        raise UsageError(f"a revision belongs to a hub id, and {model} is a local {kind}", "leave out --revision")
    if kind == "gguf":
        raise CheckpointError(f"{model} is here already, as a GGUF file", f"convert it: aiasst convert {model}")
    if kind == "hub":
        return _on_the_hub(model, revision)
    folder = path.parent if local else path
    config = checkpoint_folder.read_config_file(path) if local else checkpoint_folder.read_config(path)
    sizes = {file.name: file.stat().st_size for file in folder.iterdir() if file.is_file()}
    return Peek(model, config, None, _weight_bytes(sizes))


def _on_the_hub(repository: str, revision: str | None) -> Peek:
    no_telemetry()
    snapshot, sizes = hub.peek(repository, revision=revision)
    if CONFIG not in sizes:
        gguf = next((name for name in sorted(sizes) if name.endswith(".gguf")), None)
        raise CheckpointError(
            f"the repository {repository} has no config.json",
            f"download its GGUF file ({gguf}) and convert that"
            if gguf
            else "look for the Hugging Face form of this model",
        )
    return Peek(repository, checkpoint_folder.read_config(snapshot.path), snapshot.commit, _weight_bytes(sizes))


def _weight_bytes(sizes: Mapping[str, int]) -> int | None:
    """Of the form that convert would take: one file, or its shards."""
    for whole in (SAFETENSORS, PICKLE):
        if whole in sizes:
            return sizes[whole]
        shards = [size for name, size in sizes.items() if _SHARD.fullmatch(name) and name.endswith(Path(whole).suffix)]
        if shards:
            return sum(shards)
    return None
