"""Pickled weights (.bin, .pt) become safetensors, read by torch's restricted unpickler. Decides nothing about whether they may."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiasst.artifacts.model_folder import disk_errors
from aiasst.convert.sources import safetensors_file
from aiasst.convert.sources.checkpoint_folder import SAFETENSORS, SAFETENSORS_INDEX, copy_companions
from aiasst.convert.sources.safetensors_file import PlannedTensor
from aiasst.errors import CheckpointError, MissingExtraError
from aiasst.progress import Progress, ProgressFn, silent

if TYPE_CHECKING:
    import torch

_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip


def rewrite(folder: Path, files: Sequence[Path], destination: Path, progress: ProgressFn = silent) -> None:
    """Write the weights of `files` as safetensors into `destination`, with the small files of `folder` beside them.

    One safetensors file for each pickle file; memory-mapped where torch can, so that peak memory is near one tensor.

    Raises:
        CheckpointError: a file holds something else than tensors (code is never run), or is damaged.
        ResourceError: the disk is full.
        MissingExtraError: torch is not installed.
    """
    with disk_errors(destination, "free some space, or point TMPDIR at another disk"):
        copy_companions(folder, destination)
        shards: dict[str, str] = {}
        for number, file in enumerate(files, start=1):
            progress(Progress("rewrite pickle", number - 1, len(files), file.name))
            tensors = load(file)
            name = SAFETENSORS if len(files) == 1 else f"model-{number:05}-of-{len(files):05}.safetensors"
            safetensors_file.write(destination / name, _plan(tensors, file), partial(_bytes, tensors))
            shards.update(dict.fromkeys(tensors, name))
        progress(Progress("rewrite pickle", len(files), len(files)))
        if len(files) > 1:
            index = json.dumps({"metadata": {}, "weight_map": shards}, indent=1)
            (destination / SAFETENSORS_INDEX).write_text(index, encoding="utf-8")


def load(file: Path) -> Mapping[str, torch.Tensor]:
    """The tensors of one pickle file by name. Raises CheckpointError where it holds anything else."""
    try:
        import torch
    except ImportError:
        raise MissingExtraError("torch", "convert") from None
    try:
        # Only the zip form of torch >= 1.6 can be mapped; the old form is read into memory.
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=_is_zip(file))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file.name} was refused: it holds more than tensors, or is damaged ({_first_line(error)})",
            "do not load it: weights need no code; look for a safetensors form of this model",
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, IndexError, TypeError) as error:
        raise CheckpointError(
            f"{file.name} is not a sound torch file: {_first_line(error)}", safetensors_file.DAMAGED
        ) from error
    return _state_dict(content, file)


def _is_zip(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(4) == b"PK\x03\x04"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].partition(". ")[0]


def _state_dict(content: Any, file: Path) -> Mapping[str, torch.Tensor]:
    for key in ("state_dict", "model"):
        # Training frameworks wrap the weights.
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{file.name} holds no weights", "give the file that transformers' save_pretrained wrote")
    strangers = [str(key) for key, value in content.items() if not _is_plain_tensor(value)]
    if strangers:
        raise CheckpointError(
            f"'{strangers[0]}' in {file.name} is not a plain tensor",
            "give the file that transformers' save_pretrained wrote",
        )
    return content


def _is_plain_tensor(value: object) -> bool:
    """Dense, with its values here: what safetensors can hold."""
    import torch

    return isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == "cpu"


def _plan(tensors: Mapping[str, torch.Tensor], file: Path) -> list[PlannedTensor]:
    planned = []
    for name, tensor in tensors.items():
        dtype = _DTYPES.get(str(tensor.dtype).removeprefix("torch."))
        if dtype is None:
            raise CheckpointError(f"'{name}' in {file.name} has the type {tensor.dtype}, which is no type of weights")
        planned.append(PlannedTensor(name, dtype, tuple(tensor.shape)))
    return planned


def _bytes(tensors: Mapping[str, torch.Tensor], name: str) -> memoryview:
    import torch

    flat = tensors[name].detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
