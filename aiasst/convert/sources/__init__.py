"""From what the user names to a local checkpoint: a Hugging Face folder, a hub id, a GGUF file. Knows no exporter and no graph.

resolve(MODEL) ─┬─ folder ───────────────────────────────┐
                ├─ hub id ── hub.download ── folder ─────┤── checked ── Checkpoint
                └─ GGUF ──── gguf_file.unpack ── folder ─┘
pickled weights, where they are allowed, become safetensors in a temporary folder (pickled.rewrite)
quantized weights become float32, exactly, in a temporary folder, with a file of their grids beside them (imports.unpack)
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from aiasst.artifacts.model_folder import Source
from aiasst.convert.sources import checkpoint_folder, pickled
from aiasst.convert.sources.checkpoint_folder import PICKLE_SUFFIXES
from aiasst.errors import CheckpointError, UsageError
from aiasst.progress import ProgressFn, silent

Kind = Literal["folder", "hub", "gguf"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
_FILE_SUFFIXES = (".gguf", ".safetensors", ".onnx", ".json", *PICKLE_SUFFIXES)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk, found sound: `path` has config.json, safetensors and tokenizer files."""

    path: Path
    config: Mapping[str, Any]
    """The parsed config.json: a foreign file, so unknown keys are kept."""
    model_type: str
    source: Source
    trust_remote_code: bool = False
    """Whether the user lets Python code of the checkpoint run."""
    allow_pickle: bool = False
    """Whether the user lets pickled weights be read."""
    grids: Path | None = None
    """Where the checkpoint was quantized: the file of its grids (artifacts.grids); `path` holds the dequantized weights."""


@contextmanager
def resolve(
    model: str,
    *,
    revision: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    progress: ProgressFn = silent,
) -> Iterator[Checkpoint]:
    """Yield the checkpoint that `model` names; what was written for it alone (GGUF, pickle) vanishes when the block ends.

    Args:
        model: Path of a Hugging Face folder or of a GGUF file, or a hub id "org/name". A path that exists always wins.
        revision: Branch, tag or commit of the hub repository.
        allow_pickle: Read .bin and .pt weights, with torch's restricted unpickler.
        trust_remote_code: Accept a model type that is Python code in the checkpoint.
        progress: Told about download, unpacking and hashing.

    Raises:
        UsageError: `model` is empty, or a revision is given for something that has none.
        CheckpointError: no such folder or repository, or the checkpoint is damaged, unsafe or not understood.
        NetworkError: the hub does not answer.
        ResourceError: the disk is full.
    """
    no_telemetry()
    kind = classify(model)
    if revision is not None and kind != "hub":
        raise UsageError(f"a revision belongs to a hub id, and {model} is a local {kind}", "leave out --revision")
    with ExitStack() as stack:
        if kind == "hub":
            yield _from_hub(stack, model, revision, allow_pickle, trust_remote_code, progress)
        elif kind == "gguf":
            yield _from_gguf(stack, Path(model).expanduser(), progress)
        else:
            path = Path(model).expanduser()
            yield _from_folder(
                stack, path, "folder", path.resolve().name, None, allow_pickle, trust_remote_code, progress
            )


def no_telemetry() -> None:
    """Called before the hub is asked for anything."""
    # Before huggingface_hub is imported for the first time (transformers imports it too), or it would not be read.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def classify(model: str) -> Kind:
    """What `model` names; looks at the disk, never at the network.

    Raises:
        UsageError: it is empty.
        CheckpointError: it looks like a path that does not exist, or is a file of a kind that is no checkpoint.
    """
    if not model.strip():
        raise UsageError("no model is named", "give a folder, a GGUF file or a hub id such as Qwen/Qwen3-0.6B")
    path = Path(model).expanduser()
    if path.is_dir():
        return "folder"
    if path.exists():
        if _is_gguf(path):
            return "gguf"
        raise CheckpointError(
            f"{path} is a file, and not a GGUF file", "give the folder that holds config.json and the weights"
        )
    if model.endswith(_FILE_SUFFIXES) or not _HUB_ID.fullmatch(model):
        raise CheckpointError(
            f"there is no such folder or file: {model}", "a hub id has the form org/name, such as Qwen/Qwen3-0.6B"
        )
    return "hub"


def _is_gguf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"GGUF" or path.suffix == ".gguf"


def _from_folder(
    stack: ExitStack,
    folder: Path,
    kind: Kind,
    name: str,
    revision: str | None,
    allow_pickle: bool,
    trust_remote_code: bool,
    progress: ProgressFn,
) -> Checkpoint:
    from aiasst.convert import imports

    config = checkpoint_folder.read_config(folder)
    checkpoint_folder.refuse_custom_code(config, trust_remote_code=trust_remote_code)
    checkpoint_folder.refuse_leading_links(folder)
    weights = checkpoint_folder.safetensors_files(folder)
    if not weights:
        weights = _allowed_pickles(folder, name, allow_pickle)
        temporary = stack.enter_context(temporary_folder())
        pickled.rewrite(folder, weights, temporary, progress)
        folder = temporary
    sha256 = checkpoint_folder.sha256_of_all(weights, progress)
    source = Source(kind=kind, name=name, revision=revision, sha256=sha256)
    quantization = imports.find_quantization(folder, config)
    if quantization is None:
        return Checkpoint(folder, config, config["model_type"], source, trust_remote_code, allow_pickle)
    temporary = stack.enter_context(temporary_folder())
    checkpoint_folder.copy_companions(folder, temporary)
    grids = imports.unpack(checkpoint_folder.safetensors_files(folder), config, quantization, temporary, progress)
    config = checkpoint_folder.read_config(temporary)
    return Checkpoint(temporary, config, config["model_type"], source, trust_remote_code, allow_pickle, grids)


def _allowed_pickles(folder: Path, name: str, allow_pickle: bool) -> list[Path]:
    pickles = checkpoint_folder.pickle_files(folder)
    if not pickles:
        raise CheckpointError(
            f"{name} has no weights: neither {checkpoint_folder.SAFETENSORS} nor {checkpoint_folder.SAFETENSORS_INDEX}",
            "use the Hugging Face form of the checkpoint (transformers' save_pretrained writes it)",
        )
    if not allow_pickle:
        raise CheckpointError(
            f"the weights of {name} are in pickle files ({pickles[0].name}), which can carry code",
            "look for a safetensors form of this model, or, if you trust its author: --allow-pickle",
        )
    return pickles


def _from_hub(
    stack: ExitStack,
    repository: str,
    revision: str | None,
    allow_pickle: bool,
    trust_remote_code: bool,
    progress: ProgressFn,
) -> Checkpoint:
    from aiasst.convert.sources import hub

    snapshot = hub.download(
        repository, revision=revision, allow_pickle=allow_pickle, code=trust_remote_code, progress=progress
    )
    return _from_folder(
        stack, snapshot.path, "hub", repository, snapshot.commit, allow_pickle, trust_remote_code, progress
    )


def _from_gguf(stack: ExitStack, file: Path, progress: ProgressFn) -> Checkpoint:
    from aiasst.convert.sources import gguf_file

    temporary = stack.enter_context(temporary_folder())
    gguf_file.unpack(file, temporary, progress)
    config = checkpoint_folder.read_config(temporary)
    source = Source(kind="gguf", name=file.name, sha256=checkpoint_folder.sha256_of_all([file], progress))
    return Checkpoint(temporary, config, config["model_type"], source)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """An empty folder that vanishes with all that is in it."""
    with tempfile.TemporaryDirectory(prefix="aiasst-", ignore_cleanup_errors=True) as name:
        yield Path(name)
