"""What a calibration has finished, on disk, so that one that was killed goes on where it stopped. Knows no model.

    .NAME.calibrating/          beside the folder NAME that will be written
    ├── key.json                what the work depends on; another key begins anew
    ├── done/STEP.npz           the finished weights of a step, written whole or not at all
    ├── boundaries/…            activations between the steps (see `activations`)
    └── mapped/…                what memory shall not hold

A step counts as finished when its file has its name: everything the next step reads must be written before.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aiasst.artifacts.document import write_text_atomically
from aiasst.quantize.grid import Grid, Quantized
from aiasst.quantize.matrix import FloatMatrix
from aiasst.quantize.ranges import InputRange

FloatVector = npt.NDArray[np.float32]

_KEY, _DONE, _BOUNDARIES, _MAPPED = "key.json", "done", "boundaries", "mapped"
_INDEX = "index"


def work_folder(destination: Path) -> Path:
    """Where the work for the folder `destination` is kept."""
    return destination.parent / f".{destination.name}.calibrating"


def key_of(parts: Mapping[str, object]) -> str:
    """Hex digest of everything that the result depends on; `parts` must be plain JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class StepResult:
    """What one step gave."""

    matrices: Mapping[str, Quantized | FloatMatrix]
    """By weight name: on a grid, or float32 [N, K]."""
    vectors: Mapping[str, FloatVector]
    """Replaced gammas, betas and biases by name."""
    ranges: Mapping[str, InputRange]
    """Fixed ranges of the inputs of products, by the name of the weight."""
    error: float
    """Relative error of the activations behind the step: |x_float - x_quantized|^2 / |x_float|^2."""


class WorkState:
    """The work folder of one calibration."""

    def __init__(self, folder: Path, *, begun_anew: bool) -> None:
        """See `open`."""
        self.folder = folder
        self.begun_anew = begun_anew
        """There was work of other settings here, which was thrown away."""
        self._places: dict[str, tuple[Path, int]] = {}
        for file in sorted((folder / _DONE).glob("*.npz")):
            self._learn(file)

    @classmethod
    def open(cls, folder: Path, key: str) -> WorkState:
        """Go on with what is in `folder` when it has the same key; else begin anew. Raises OSError where it cannot be written."""
        found = _read_key(folder)
        if found != key:
            shutil.rmtree(folder, ignore_errors=True)
            (folder / _DONE).mkdir(parents=True)
            write_text_atomically(folder / _KEY, json.dumps({"key": key}))
        for file in (folder / _DONE).glob("*.partial"):
            file.unlink()
        return cls(folder, begun_anew=bool(found) and found != key)

    @property
    def boundaries(self) -> Path:
        """Folder for the activations between steps."""
        return self.folder / _BOUNDARIES

    def finished(self, step: str) -> bool:
        """Whether `step` is done."""
        return self._file(step).exists()

    def save(self, step: str, result: StepResult) -> None:
        """Write what `step` gave, whole or not at all; from here on it is finished. Raises OSError when the disk is full."""
        arrays, index = _flatten(result)
        file = self._file(step)
        partial = file.with_suffix(".partial")
        with partial.open("wb") as target:
            members: dict[str, Any] = {_INDEX: np.array(json.dumps(index)), **arrays}
            np.savez(target, **members)
            target.flush()
            os.fsync(target.fileno())
        partial.replace(file)
        self._learn(file)

    def holds(self, name: str) -> bool:
        """Whether the weight `name` is finished."""
        return name in self._places

    def matrix(self, name: str) -> Quantized | FloatMatrix:
        """A finished weight, read from disk."""
        file, number = self._places[name]
        with np.load(file, allow_pickle=False) as archive:
            entry = json.loads(str(archive[_INDEX]))["matrices"][number]
            if entry["grid"] is None:
                return np.asarray(archive[f"{number}.float"])
            zeros = archive[f"{number}.zeros"] if f"{number}.zeros" in archive.files else None
            return Quantized(Grid(**entry["grid"]), archive[f"{number}.values"], archive[f"{number}.scales"], zeros)

    def mapped(self, name: str, make: Callable[[], FloatMatrix]) -> FloatMatrix:
        """What `make` gives, kept in a file and mapped from there: only what is read of it takes memory."""
        file = self.folder / _MAPPED / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.npy"
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            partial = file.with_suffix(".partial")
            with partial.open("wb") as target:
                np.save(target, make())
            partial.replace(file)
        mapped: FloatMatrix = np.load(file, mmap_mode="r", allow_pickle=False)
        return mapped

    def vectors(self) -> dict[str, FloatVector]:
        """All replaced vectors of all finished steps."""
        vectors: dict[str, FloatVector] = {}
        for file in sorted((self.folder / _DONE).glob("*.npz")):
            with np.load(file, allow_pickle=False) as archive:
                names = json.loads(str(archive[_INDEX]))["vectors"]
                vectors |= {name: archive[f"vector.{number}"] for number, name in enumerate(names)}
        return vectors

    def ranges(self) -> dict[str, InputRange]:
        """The ranges of all finished steps."""
        ranges: dict[str, InputRange] = {}
        for file in sorted((self.folder / _DONE).glob("*.npz")):
            with np.load(file, allow_pickle=False) as archive:
                for name, (low, high, by_row) in json.loads(str(archive[_INDEX]))["ranges"].items():
                    divisors = archive[f"divisors.{name}"] if f"divisors.{name}" in archive.files else None
                    ranges[name] = InputRange(low, high, divisors, by_row)
        return ranges

    def error(self, step: str) -> float:
        """Relative error behind a finished step."""
        with np.load(self._file(step), allow_pickle=False) as archive:
            return float(json.loads(str(archive[_INDEX]))["error"])

    def begin_anew(self) -> None:
        """Forget every finished step: what the next one would read is not there."""
        for part in (_DONE, _BOUNDARIES, _MAPPED):
            shutil.rmtree(self.folder / part, ignore_errors=True)
        (self.folder / _DONE).mkdir()
        self._places.clear()

    def remove(self) -> None:
        """Throw the work away: the folder it was for is written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, step: str) -> Path:
        return self.folder / _DONE / f"{step}.npz"

    def _learn(self, file: Path) -> None:
        with np.load(file, allow_pickle=False) as archive:
            for number, entry in enumerate(json.loads(str(archive[_INDEX]))["matrices"]):
                self._places[entry["name"]] = file, number


def _read_key(folder: Path) -> str:
    """The key of the work in `folder`; empty where there is none that can be read."""
    try:
        return str(json.loads((folder / _KEY).read_text(encoding="utf-8"))["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _flatten(result: StepResult) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """Arrays by member name, and the index that says what they are."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    matrices: list[dict[str, Any]] = []
    for number, (name, content) in enumerate(result.matrices.items()):
        matrices.append({"name": name, "grid": asdict(content.grid) if isinstance(content, Quantized) else None})
        arrays |= {f"{number}.{part}": array for part, array in _parts(content)}
    arrays |= {f"vector.{number}": vector for number, vector in enumerate(result.vectors.values())}
    divided = {name: found.divisors for name, found in result.ranges.items() if found.divisors is not None}
    arrays |= {f"divisors.{name}": divisors for name, divisors in divided.items()}
    ranges = {name: [found.low, found.high, found.by_row] for name, found in result.ranges.items()}
    return arrays, {"matrices": matrices, "vectors": list(result.vectors), "ranges": ranges, "error": result.error}


def _parts(content: Quantized | FloatMatrix) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    if not isinstance(content, Quantized):
        yield "float", content
        return
    yield "values", content.values
    yield "scales", content.scales
    if content.zero_points is not None:
        yield "zeros", content.zero_points
