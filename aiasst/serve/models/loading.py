"""A model folder to a worker that answers: its hashes checked, its engine opened as a device config says. Knows no protocol.

Everything here takes seconds and runs on a thread beside the event loop.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aiasst.artifacts.device import DeviceConfig
from aiasst.artifacts.model_folder import ModelFolder
from aiasst.engine.cache import WEIGHTS_IN_MEMORY
from aiasst.engine.encode import TOKEN_BUDGET, Encoder
from aiasst.engine.engine import PREFIX_BYTES
from aiasst.engine.speculate import LONGEST_DRAFT
from aiasst.engine.text import TextEngine
from aiasst.errors import ArtifactError
from aiasst.profile import obey, quick_config
from aiasst.serve.models.memory import Needs, least_cache_tokens

GENERATES = "text-generation"
_ACTIVATIONS = 16
"""Arrays of hidden size that a run of an encoder holds for each token of a batch, about."""
_FLOAT = np.dtype(np.float32).itemsize


@dataclass(frozen=True)
class Obeyed:
    """A device config for one model on this machine, and what is said of it."""

    config: DeviceConfig
    remarks: tuple[str, ...]


def config_for(folder: ModelFolder, config: DeviceConfig | None) -> Obeyed:
    """`config` as far as it is safe here; without one this machine is asked briefly."""
    if config is None:
        return Obeyed(quick_config(folder), ())
    found = obey(config, folder)
    return Obeyed(found.config, found.remarks)


def needs_of(folder: ModelFolder, config: DeviceConfig) -> Needs:
    """What the model in `folder` asks of memory when it runs as `config` says.

    Raises:
        ArtifactError: the folder holds a foreign graph.
    """
    shape, decisions = folder.manifest.shape, config.decisions
    if shape is None:
        raise ArtifactError(
            f"{folder.path} holds a foreign graph, which cannot be served", "convert a checkpoint first"
        )
    both = decisions.twin is not None and decisions.twin.use
    stored = folder.weight_bytes + (folder.twin_weight_bytes if both else 0)
    weights = int(stored * WEIGHTS_IN_MEMORY)
    if folder.manifest.task != GENERATES:
        return Needs(weights + TOKEN_BUDGET * shape.hidden_size * _ACTIVATIONS * _FLOAT, 0, 0)
    slots, token = decisions.slots.value, folder.cache_bytes_per_token
    working = max(slots, 1 + LONGEST_DRAFT) * shape.vocab_size * _FLOAT
    most = slots * shape.context_length * token + PREFIX_BYTES
    return Needs(weights + working, least_cache_tokens(shape.context_length) * token, most)


def open_text(folder: ModelFolder, config: DeviceConfig, ceiling: int, *, speculate: bool) -> TextEngine:
    """Check and open a decoder that takes at most `ceiling` bytes.

    Raises:
        ArtifactError: a file of the folder has changed since it was written, or the folder cannot be run.
        ResourceError: memory is short, or a limit of the config cannot be kept.
    """
    folder.check_hashes()
    return TextEngine(folder, _under(config, ceiling), speculate=speculate)


def open_encoder(folder: ModelFolder, config: DeviceConfig) -> Encoder:
    """Check and open an encoder. Raises as `open_text`."""
    folder.check_hashes()
    return Encoder(folder, config)


def _under(config: DeviceConfig, ceiling: int) -> DeviceConfig:
    decisions = config.decisions
    limited = decisions.memory_ceiling_bytes.model_copy(update={"value": ceiling})
    return config.model_copy(update={"decisions": decisions.model_copy(update={"memory_ceiling_bytes": limited})})
