"""Asks before the work whether the disk can hold the result. Reads headers, no weights."""

from __future__ import annotations

import math
from pathlib import Path

from aiasst.artifacts.model_folder import require_free_disk
from aiasst.convert.sources.safetensors_file import read_header

_FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
MARGIN = 64 * 1024 * 1024
"""Room for the graph, the tokenizer and what else lives on the disk."""


def float32_bytes(folder: Path) -> int:
    """Bytes of a checkpoint's floating-point weights in float32, from the headers of its safetensors files.

    Raises:
        CheckpointError: a header is broken.
    """
    headers = (read_header(path) for path in folder.glob("*.safetensors"))
    return sum(4 * math.prod(entry.shape) for header in headers for entry in header.values() if entry.dtype in _FLOATS)


def require(destination: Path, size: int) -> None:
    """Refuse where the disk of `destination` has not `size` bytes free.

    Raises:
        ResourceError: it has not.
    """
    require_free_disk(destination, size + MARGIN)
