"""The numbers of a checkpoint's Dense modules as .npy files of a model folder. Knows no graph and computes nothing with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from aiasst.artifacts.encoding import Projection
from aiasst.convert.sources import pickled
from aiasst.convert.sources.checkpoint_folder import MODULE_WEIGHTS
from aiasst.convert.sources.safetensors_file import read_header
from aiasst.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_TENSORS = {"weight.npy": "linear.weight", "bias.npy": "linear.bias", "residual.npy": "residual.weight"}
"""File of a model folder → tensor in the checkpoint."""


def write(checkpoint: Path, projection: Projection, folder: Path, *, allow_pickle: bool = False) -> None:
    """Write the numbers of one Dense module of `checkpoint` into the model folder `folder`, in float32.

    Raises:
        CheckpointError: they are missing, damaged or of another shape than declared, or pickled without leave.
    """
    place = checkpoint / projection.folder
    tensors = _tensors(place, allow_pickle=allow_pickle)
    for file, shape in projection.files.items():
        tensor = tensors.get(_TENSORS[file])
        if tensor is None or tuple(tensor.shape) != shape:
            found = "is missing" if tensor is None else f"has the shape {tuple(tensor.shape)}, not {shape}"
            raise CheckpointError(f"{_TENSORS[file]} of {place} {found}", "download the checkpoint again")
        (folder / projection.folder).mkdir(exist_ok=True)
        np.save(folder / projection.folder / file, _floats(tensor), allow_pickle=False)


def _tensors(place: Path, *, allow_pickle: bool) -> Mapping[str, torch.Tensor]:
    from safetensors.torch import load_file

    safe, pickle = (place / name for name in MODULE_WEIGHTS)
    if safe.is_file():
        read_header(safe)  # finds damage before memory is taken
        tensors: Mapping[str, torch.Tensor] = load_file(safe)
        return tensors
    if not pickle.is_file():
        raise CheckpointError(f"{place} has no weights ({safe.name})", "download the checkpoint again")
    if not allow_pickle:
        raise CheckpointError(
            f"the weights of {place} are in a pickle file ({pickle.name}), which can carry code",
            "look for a safetensors form of this model, or, if you trust its author: --allow-pickle",
        )
    return pickled.load(pickle)


def _floats(tensor: torch.Tensor) -> npt.NDArray[np.float32]:
    import torch

    values: npt.NDArray[np.float32] = tensor.detach().to(torch.float32).contiguous().numpy()
    return values
