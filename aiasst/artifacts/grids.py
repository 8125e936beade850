"""The grids of a checkpoint that others quantized: by module the scales, the zero points and a fingerprint of every row.

Convert dequantizes such a checkpoint exactly and leaves this file; quantize finds each row of the finished graph in it, wherever
an exporter put it, and brings it back onto its integers. Knows no packing and no graph.

The file is a zip of .npy arrays (numpy's own format, no pickle) and `about.json`; one module is in memory at a time.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from aiasst.errors import ArtifactError

FILE_NAME = "imported.npz"

_ABOUT = "about.json"
_DIGEST_BYTES = 8


@dataclass(frozen=True)
class ModuleGrid:
    """The grid of one matrix [N, K]: weight = (value - zero point) x scale, with `value` in 0 … 2^bits - 1."""

    bits: int
    group_size: int
    """Inputs that share a scale; K where a row has one scale."""
    scales: npt.NDArray[np.float32]
    """float32 [N, groups]."""
    zero_points: npt.NDArray[np.uint8]
    """uint8 [N, groups]."""
    groups: npt.NDArray[np.int32] | None = None
    """Group of each input, int32 [K], where the inputs of a group do not lie side by side (act-order); else None."""

    @property
    def symmetric(self) -> bool:
        """Every zero point lies in the middle."""
        return bool((self.zero_points == 1 << (self.bits - 1)).all())

    def group_of_inputs(self, k: int) -> npt.NDArray[np.intp]:
        """Group of each of `k` inputs."""
        return np.arange(k) // self.group_size if self.groups is None else self.groups.astype(np.intp)


def row_digests(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.uint64]:
    """A fingerprint of each row of float32 [N, K]: uint64 [N], the same wherever the row lies."""
    contiguous = np.ascontiguousarray(rows)
    digests = b"".join(hashlib.blake2b(row.data, digest_size=_DIGEST_BYTES).digest() for row in contiguous)
    return np.frombuffer(digests, dtype=np.uint64)


class GridsWriter:
    """Writes the file module by module; use it in a `with` block, which completes it."""

    def __init__(self, path: Path, method: str) -> None:
        self._method = method
        self._modules: dict[str, dict[str, int]] = {}
        self._zip = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._zip.writestr(_ABOUT, json.dumps({"method": self._method, "modules": self._modules}))
        self._zip.close()

    def add(self, name: str, grid: ModuleGrid, digests: npt.NDArray[np.uint64], k: int) -> None:
        """Append the grid of the module `name`, whose dequantized rows have the fingerprints `digests` and `k` inputs."""
        number = len(self._modules)
        self._modules[name] = {"bits": grid.bits, "group_size": grid.group_size, "k": k}
        arrays: dict[str, npt.NDArray[Any] | None] = {
            "digests": digests, "scales": grid.scales, "zero_points": grid.zero_points, "groups": grid.groups,
        }  # fmt: skip
        for part, array in arrays.items():
            if array is not None:
                with self._zip.open(f"{number}.{part}.npy", "w", force_zip64=True) as stream:
                    np.lib.format.write_array(stream, np.ascontiguousarray(array), allow_pickle=False)


@dataclass(frozen=True)
class ModuleEntry:
    """What is known of a module without reading its grid."""

    name: str
    number: int
    bits: int
    group_size: int
    k: int


class ImportedGrids:
    """The file, opened for reading; arrays are read when they are asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._opened() as file:
            about = json.loads(file.read(_ABOUT))
        self.method: str = about["method"]
        """How the checkpoint was quantized: gptq, awq, …"""
        self.modules = tuple(ModuleEntry(name, i, **row) for i, (name, row) in enumerate(about["modules"].items()))

    def digests(self, module: ModuleEntry) -> npt.NDArray[np.uint64]:
        """Fingerprints of the module's rows, uint64 [N]."""
        with self._opened() as file:
            found: npt.NDArray[np.uint64] = _read(file, f"{module.number}.digests.npy")
        return found

    def grid(self, module: ModuleEntry) -> ModuleGrid:
        """The module's grid."""
        with self._opened() as file:
            permuted = f"{module.number}.groups.npy"
            return ModuleGrid(
                module.bits,
                module.group_size,
                _read(file, f"{module.number}.scales.npy"),
                _read(file, f"{module.number}.zero_points.npy"),
                _read(file, permuted) if permuted in file.namelist() else None,
            )

    @contextmanager
    def _opened(self) -> Iterator[zipfile.ZipFile]:
        try:
            with zipfile.ZipFile(self._path) as file:
                yield file
        except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
            raise ArtifactError(
                f"{self._path} does not hold the grids of an imported checkpoint: {error}", "convert it again"
            ) from error


def _read(file: zipfile.ZipFile, name: str) -> npt.NDArray[Any]:
    with file.open(name) as stream:
        array: npt.NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
    return array
