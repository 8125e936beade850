"""The file of weights beside a graph: read and written tensor by tensor, so that only one is in memory. Knows no format."""

from __future__ import annotations

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

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO = path.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, name: str, array: npt.NDArray[np.generic]) -> ir.ExternalTensor:
        """Append `array` and return the tensor that refers to it. Raises OSError when the disk is full."""
        offset = self._align()
        # The file's own write reports a full disk by its number; numpy's tofile loses it.
        self._file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return self._tensor(name, offset, ir.DataType.from_numpy(array.dtype), array.shape)

    def copy(self, name: str, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
        """Append an existing tensor of any type as it is."""
        offset = self._align()
        self._file.write(_mapped_bytes(tensor).data if isinstance(tensor, ir.ExternalTensor) else tensor.tobytes())
        return self._tensor(name, offset, tensor.dtype, tuple(int(d) for d in tensor.shape.numpy()))

    def holds(self, tensor: ir.TensorProtocol) -> bool:
        """Whether `tensor` refers to this file."""
        return isinstance(tensor, ir.ExternalTensor) and Path(tensor.path) == self._path

    def _align(self) -> int:
        self._file.write(b"\0" * (-self._file.tell() % _ALIGNMENT))
        return self._file.tell()

    def _tensor(self, name: str, offset: int, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.ExternalTensor:
        length = self._file.tell() - offset
        folder = self._path.parent
        return ir.ExternalTensor(
            self._path.name, offset, length, dtype, shape=ir.Shape(shape), name=name, base_dir=folder
        )


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
