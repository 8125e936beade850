"""What fp32 and fp16 share: the matrix stays floating point and keeps its layout. Knows no other format.

On an x86 CPU half precision is storage only: a Cast behind the initializer, folded when the session opens, gives back float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from aiasst.artifacts.recipe import WeightFormat
from aiasst.quantize.emit import MICROSOFT, Emitter, PackedWeight
from aiasst.quantize.formats import Part
from aiasst.quantize.grid import Quantized
from aiasst.quantize.matrix import FloatMatrix, Matrix

WEIGHT = ".float"
_LARGEST_HALF = 65504.0


@dataclass(frozen=True)
class Floating:
    """The `Format` of floating-point weights of `dtype`."""

    dtype: np.dtype[np.float16] | np.dtype[np.float32]
    fuses_bias: bool = False

    def unfit(self, spec: WeightFormat, matrix: Matrix, opset: int) -> str:
        """Never unfit."""
        return ""

    def nbytes(self, spec: WeightFormat, matrix: Matrix) -> int:
        """Elements times the size of one."""
        return matrix.elements * self.dtype.itemsize

    def grid(self, spec: WeightFormat) -> None:
        """None: there is nothing to round to."""

    def pack(self, spec: WeightFormat, matrix: Matrix, content: Quantized | FloatMatrix) -> tuple[Part, ...]:
        """The matrix in its old layout; values beyond half precision's range become its largest."""
        assert not isinstance(content, Quantized)
        stored = matrix.as_stored(content)
        if self.dtype == np.float16:
            stored = np.clip(stored, -_LARGEST_HALF, _LARGEST_HALF)
        return (Part(WEIGHT, np.ascontiguousarray(stored, dtype=self.dtype)),)

    def unpack(self, spec: WeightFormat, matrix: Matrix, parts: tuple[Part, ...]) -> FloatMatrix:
        """Float32 [N, K]."""
        return matrix.as_rows(parts[0].array.astype(np.float32))

    def product(
        self, emit: Emitter, spec: WeightFormat, packed: PackedWeight, x: ir.Value, bias: ir.Value | None, name: str
    ) -> ir.Value:
        """Cast and MatMul (FusedMatMul where the matrix lies transposed)."""
        weight = self._widened(emit, packed.initializer(WEIGHT), name)
        if packed.matrix.rows_first:
            return emit.op("FusedMatMul", [x, weight], {"transB": 1}, domain=MICROSOFT, name=name)
        return emit.op("MatMul", [x, weight], name=name)

    def lookup(self, emit: Emitter, spec: WeightFormat, packed: PackedWeight, ids: ir.Value, name: str) -> ir.Value:
        """Gather, and a Cast of the few rows that were asked for."""
        rows = emit.op("Gather", [packed.initializer(WEIGHT), ids], {"axis": 0}, name=name)
        return self._widened(emit, rows, name)

    def _widened(self, emit: Emitter, value: ir.Value, name: str) -> ir.Value:
        if self.dtype == np.float32:
            return value
        return emit.op("Cast", [value], {"to": int(ir.DataType.FLOAT)}, name=f"{name}.cast")
