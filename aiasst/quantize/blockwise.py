"""What int2, int4 and int8 share: blocks of weights along K, packed for MatMulNBits and GatherBlockQuantized of ONNX Runtime.

The layout is that of the operators' schemas (com.microsoft, version 1): values uint8 [N, blocks, block * bits / 8], scales
float32 [N, blocks], zero points uint8 [N, ceil(blocks * bits / 8)]. K is padded to whole blocks with weights of zero. Always
accuracy_level 4 (activations rounded to int8 a row and block), without which 2 and 8 bits fall to a path 50 to 100 times
slower; zero points are packed integers or absent, since floating-point ones and g_idx leave the fast path too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aiasst.artifacts.recipe import WeightFormat
from aiasst.quantize.bits import pack_bits, unpack_bits
from aiasst.quantize.emit import MICROSOFT, Emitter, PackedWeight
from aiasst.quantize.formats import Part
from aiasst.quantize.grid import Grid, Quantized
from aiasst.quantize.matrix import ByteMatrix, FloatMatrix, Matrix

VALUES, SCALES, ZERO_POINTS = ".q", ".scale", ".zp"


@dataclass(frozen=True)
class Blockwise:
    """The `Format` of integers of `bits` bits in blocks."""

    bits: int
    fuses_bias: bool = True

    def unfit(self, spec: WeightFormat, matrix: Matrix, opset: int) -> str:
        """Never unfit: K is padded to whole blocks."""
        return ""

    def nbytes(self, spec: WeightFormat, matrix: Matrix) -> int:
        """Padded values, a float32 scale a block, packed zero points when there are any."""
        blocks, block = _cut(spec, matrix)
        zero_points = -(-blocks * self.bits // 8) if spec.zero_point else 0
        return matrix.n * (blocks * block * self.bits // 8 + 4 * blocks + zero_points)

    def grid(self, spec: WeightFormat) -> Grid:
        """All values of `bits` bits, one scale a block."""
        return Grid(self.bits, spec.block_size, spec.zero_point)

    def pack(self, spec: WeightFormat, matrix: Matrix, content: Quantized | FloatMatrix) -> tuple[Part, ...]:
        """Values, scales and zero points as the operators read them."""
        assert isinstance(content, Quantized)
        blocks, block = _cut(spec, matrix)
        values = pack_bits(_pad(content, blocks * block), self.bits).reshape(matrix.n, blocks, -1)
        parts = (Part(VALUES, values), Part(SCALES, content.scales))
        if content.zero_points is None:
            return parts
        return (*parts, Part(ZERO_POINTS, pack_bits(content.zero_points, self.bits)))

    def unpack(self, spec: WeightFormat, matrix: Matrix, parts: tuple[Part, ...]) -> FloatMatrix:
        """Float32 [N, K] that the operators compute with."""
        arrays: dict[str, npt.NDArray[Any]] = {part.suffix: part.array for part in parts}
        blocks, block = _cut(spec, matrix)
        values = unpack_bits(arrays[VALUES].reshape(matrix.n, -1), self.bits, blocks * block)[:, : matrix.k]
        zeros = unpack_bits(arrays[ZERO_POINTS], self.bits, blocks) if ZERO_POINTS in arrays else None
        return Quantized(self.grid(spec), values, arrays[SCALES], zeros).dequantize()

    def product(
        self, emit: Emitter, spec: WeightFormat, packed: PackedWeight, x: ir.Value, bias: ir.Value | None, name: str
    ) -> ir.Value:
        """One MatMulNBits."""
        no_group_index = None
        inputs = [x, packed.initializer(VALUES), packed.initializer(SCALES), _zero_points(packed), no_group_index, bias]
        while inputs[-1] is None:
            inputs.pop()
        attributes = {
            "K": packed.matrix.k, "N": packed.matrix.n, "bits": self.bits,
            "block_size": _block_size(spec), "accuracy_level": 4,
        }  # fmt: skip
        return emit.op("MatMulNBits", inputs, attributes, domain=MICROSOFT, name=name)

    def lookup(self, emit: Emitter, spec: WeightFormat, packed: PackedWeight, ids: ir.Value, name: str) -> ir.Value:
        """One GatherBlockQuantized over the bytes that MatMulNBits reads as well; padding of K is cut off behind it."""
        matrix = packed.matrix
        blocks, block = _cut(spec, matrix)
        data = packed.initializer(VALUES, (matrix.n, blocks * block * self.bits // 8))
        inputs = [data, ids, packed.initializer(SCALES), _zero_points(packed)]
        if inputs[-1] is None:
            inputs.pop()
        attributes = {"bits": self.bits, "block_size": block, "gather_axis": 0, "quantize_axis": 1}
        rows = emit.op("GatherBlockQuantized", inputs, attributes, domain=MICROSOFT, name=name)
        if blocks * block == matrix.k:
            return rows
        start, end, last = (emit.constant(np.array([i], dtype=np.int64)) for i in (0, matrix.k, -1))
        return emit.op("Slice", [rows, start, end, last], name=f"{name}.cut")


def _block_size(spec: WeightFormat) -> int:
    assert spec.block_size is not None, "WeightFormat holds that blockwise formats have one"
    return spec.block_size


def _cut(spec: WeightFormat, matrix: Matrix) -> tuple[int, int]:
    """Number of blocks a row, and their size."""
    block = _block_size(spec)
    return -(-matrix.k // block), block


def _zero_points(packed: PackedWeight) -> ir.Value | None:
    return packed.initializer(ZERO_POINTS) if packed.has(ZERO_POINTS) else None


def _pad(content: Quantized, width: int) -> ByteMatrix:
    """Values [N, width]; what is added stands for zero."""
    n, k = content.values.shape
    if k == width:
        return content.values
    padded = np.empty((n, width), dtype=np.uint8)
    padded[:, :k] = content.values
    padded[:, k:] = content.grid.middle if content.zero_points is None else content.zero_points[:, -1:]
    return padded
