"""The file of weights beside a graph: read and written tensor by tensor, so that only one is in memory. Knows no format.

A second graph in the same folder has a file of its own, and refers to the first one's for whatever lies there already.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aiasst.quantize.matrix import FloatMatrix

# Kernels read vectors of up to 64 bytes; ONNX Runtime maps the file, so an offset is the address's alignment.
_ALIGNMENT = 64


class WeightsFile:
    """An open file of external data; use it in a `with` block."""

    def __init__(self, path: Path, *, lends: bool = False, first: WeightsFile | None = None) -> None:
        """Begin the file `path`.

        Args:
            path: of the file.
            lends: another graph's file will use its tensors.
            first: a file in the same folder that lends, written already.
        """
        self._path = path
        self._lends = lends
        self._first = first
        self._places: dict[bytes, tuple[int, int]] = {}
        """Of a file that lends: hash of a tensor's bytes → where they lie, offset and length."""
        self.shared: set[str] = set()
        """Names of the tensors that lie in the first file."""
        self._file: BinaryIO = path.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, name: str, array: npt.NDArray[np.generic]) -> ir.ExternalTensor:
        """Append `array` and return the tensor that refers to it. Raises OSError when the disk is full."""
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        return self._append(name, content, ir.DataType.from_numpy(array.dtype), array.shape)

    def copy(self, name: str, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
        """Append an existing tensor of any type as it is."""
        content = _mapped_bytes(tensor).data if isinstance(tensor, ir.ExternalTensor) else tensor.tobytes()
        return self._append(name, content, tensor.dtype, tuple(int(d) for d in tensor.shape.numpy()))

    def holds(self, tensor: ir.TensorProtocol) -> bool:
        """Whether `tensor` refers to this file, or to the first one."""
        if not isinstance(tensor, ir.ExternalTensor):
            return False
        return Path(tensor.path) == self._path or (self._first is not None and self._first.holds(tensor))

    def _append(
        self, name: str, content: bytes | memoryview, dtype: ir.DataType, shape: tuple[int, ...]
    ) -> ir.ExternalTensor:
        digest = hashlib.sha256(content).digest() if self._lends or self._first is not None else b""
        if self._first is not None and digest in self._first._places:
            self.shared.add(name)
            return _tensor(self._first._path, self._first._places[digest], name, dtype, shape)
        self._file.write(b"\0" * (-self._file.tell() % _ALIGNMENT))
        place = self._file.tell(), memoryview(content).nbytes
        # The file's own write reports a full disk by its number; numpy's tofile loses it.
        self._file.write(content)
        if self._lends:
            self._places[digest] = place
        return _tensor(self._path, place, name, dtype, shape)


def _tensor(
    path: Path, place: tuple[int, int], name: str, dtype: ir.DataType, shape: tuple[int, ...]
) -> ir.ExternalTensor:
    return ir.ExternalTensor(path.name, *place, dtype, shape=ir.Shape(shape), name=name, base_dir=path.parent)


def read_matrix(tensor: ir.TensorProtocol) -> FloatMatrix:
    """A float32 tensor, memory-mapped where it lies in a file.

    The pages count as ours as long as the array lives, so let it go when done; a tensor's own `numpy()` keeps them for good.
    """
    shape = tuple(int(d) for d in tensor.shape.numpy())
    if isinstance(tensor, ir.ExternalTensor):
        return _mapped_bytes(tensor).view(np.float32).reshape(shape)
    return np.asarray(tensor.numpy(), dtype=np.float32)


def read_array(tensor: ir.TensorProtocol) -> npt.NDArray[Any]:
    """A tensor of any type that numpy has, memory-mapped where it lies in a file; see `read_matrix`."""
    if isinstance(tensor, ir.ExternalTensor):
        return _mapped_bytes(tensor).view(tensor.dtype.numpy()).reshape(tuple(int(d) for d in tensor.shape.numpy()))
    return np.asarray(tensor.numpy())


def _mapped_bytes(tensor: ir.ExternalTensor) -> npt.NDArray[np.uint8]:
    if not tensor.nbytes:
        return np.empty(0, dtype=np.uint8)
    return np.memmap(tensor.path, np.uint8, mode="r", offset=tensor.offset or 0, shape=(tensor.nbytes,))
