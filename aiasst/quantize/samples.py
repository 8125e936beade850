"""Token sequences for calibration, read from a file. Knows no tokenizer and no model."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aiasst.errors import ArtifactError

_HINT = "write one with numpy: np.savez('sample_data.npz', input_ids=ids), ids being int64 [sequences, length]"


@dataclass(frozen=True)
class Samples:
    """Sequences of token ids of one length."""

    name: str
    ids: npt.NDArray[np.int64]
    """[sequences, length]."""


def load_samples(path: Path | str) -> Samples:
    """Read an .npz file that holds one integer array [sequences, length], or several of which one is `input_ids`.

    Raises:
        ArtifactError: no such file, no .npz, or no token ids in it.
    """
    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"there is no calibration file {path}", _HINT)
    if not zipfile.is_zipfile(path):
        raise ArtifactError(f"{path} is not an .npz file, or it was cut short", _HINT)
    try:
        with np.load(path, allow_pickle=False) as archive:
            ids = _only_array(archive, path)
    except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
        raise ArtifactError(f"{path} is not a readable .npz file: {error}", _HINT) from None
    if ids.ndim != 2 or ids.size == 0 or not np.issubdtype(ids.dtype, np.integer) or ids.min() < 0:
        raise ArtifactError(f"{path} holds {ids.dtype} {list(ids.shape)}, not token ids [sequences, length]", _HINT)
    return Samples(path.name, ids.astype(np.int64))


def _only_array(archive: Any, path: Path) -> npt.NDArray[Any]:
    names: list[str] = archive.files
    if "input_ids" in names:
        return np.asarray(archive["input_ids"])
    if len(names) != 1:
        raise ArtifactError(f"{path} holds the arrays {', '.join(names) or 'none'}, and none is input_ids", _HINT)
    return np.asarray(archive[names[0]])
