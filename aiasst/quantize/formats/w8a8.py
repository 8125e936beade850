"""w8a8: int8 weights with a scale a channel, uint8 activations with a scale a row. The fastest from about 12 rows up.

Built from stock operators. Each row of activations is scaled by its own largest magnitude (zero point 128), so that a row
never depends on its neighbours in the batch: the per-tensor form (DynamicQuantizeMatMul) lets one outlier row spoil the
others. u8 x s8 is the pair that has optimized kernels on x86; weights use -127 … 127.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from aiasst.artifacts.recipe import WeightFormat
from aiasst.quantize.emit import MICROSOFT, Emitter, PackedWeight
from aiasst.quantize.formats import Part
from aiasst.quantize.grid import Grid, Quantized
from aiasst.quantize.matrix import FloatMatrix, Matrix, copy_matrix
from aiasst.quantize.ranges import FACTORS

VALUES, SCALES = ".q", ".scale"
# QuantizeLinear with an axis came with this opset.
_FIRST_OPSET = 13
_AXES_AS_INPUT_OPSET = 18
# Keeps the scale of a row of zeros from being zero, which would make 0 / 0.
_SMALLEST_PEAK = np.float32(1e-30)


@dataclass(frozen=True)
class W8A8:
    """The `Format` of per-channel int8 weights and per-row uint8 activations."""

    fuses_bias: bool = False

    def unfit(self, spec: WeightFormat, matrix: Matrix, opset: int) -> str:
        """Embeddings have no activations to quantize."""
        if matrix.looks_up:
            return "w8a8 is a format of products, and this weight is an embedding"
        if opset < _FIRST_OPSET:
            return f"w8a8 needs opset {_FIRST_OPSET}, and the graph has {opset}"
        return ""

    def nbytes(self, spec: WeightFormat, matrix: Matrix) -> int:
        """A byte a weight and a float32 scale a channel."""
        return matrix.elements + 4 * matrix.n

    def grid(self, spec: WeightFormat) -> Grid:
        """-127 … 127 around 128, one scale a channel."""
        return Grid(8, None, narrow=True)

    def pack(self, spec: WeightFormat, matrix: Matrix, content: Quantized | FloatMatrix) -> tuple[Part, ...]:
        """Int8 [K, N] and scales [N]."""
        assert isinstance(content, Quantized)
        signed = (content.values ^ np.uint8(0x80)).view(np.int8)
        values = np.empty((matrix.k, matrix.n), dtype=np.int8)
        copy_matrix(signed.T, values)
        return Part(VALUES, values), Part(SCALES, content.scales.reshape(-1))

    def unpack(self, spec: WeightFormat, matrix: Matrix, parts: tuple[Part, ...]) -> FloatMatrix:
        """Float32 [N, K]."""
        values, scales = (part.array for part in parts)
        rows: FloatMatrix = values.T.astype(np.float32) * scales.astype(np.float32)[:, None]
        return rows

    def product(
        self, emit: Emitter, spec: WeightFormat, packed: PackedWeight, x: ir.Value, bias: ir.Value | None, name: str
    ) -> ir.Value:
        """Integer product of the quantized rows, scaled back by row and channel."""
        x = smoothed(emit, x, packed)
        rows = emit.shared("w8a8.rows", x, lambda: _flat(emit, x, packed.matrix.k))
        row_scales = emit.shared("w8a8.scales", rows, lambda: _row_scales(emit, rows))
        quantized = emit.shared("w8a8.values", row_scales, lambda: _quantized_rows(emit, rows, row_scales))
        one, zero_point = emit.constant(np.array(1, np.float32)), emit.constant(np.array(128, np.uint8))
        inputs = [quantized, packed.initializer(VALUES), one, packed.initializer(SCALES), zero_point]
        product = emit.op("MatMulIntegerToFloat", inputs, domain=MICROSOFT, name=f"{name}.integer")
        column = emit.shared("w8a8.column", row_scales, lambda: _column(emit, row_scales))
        scaled = emit.op("Mul", [product, column], name=f"{name}.scaled")
        leading = emit.shared("w8a8.leading", x, lambda: _leading_shape(emit, x))
        shape = emit.op("Concat", [leading, emit.constant(_index(packed.matrix.n))], {"axis": 0}, name=f"{name}.shape")
        return emit.op("Reshape", [scaled, shape], name=name)

    def lookup(self, emit: Emitter, spec: WeightFormat, packed: PackedWeight, ids: ir.Value, name: str) -> ir.Value:
        """There is none; `unfit` says so."""
        raise NotImplementedError(self.unfit(spec, packed.matrix, emit.opset))


FORMAT = W8A8()


def smoothed(emit: Emitter, x: ir.Value, packed: PackedWeight) -> ir.Value:
    """`x` with channels of outliers divided away, where calibration has found divisors; made once for all that read the same."""
    if packed.input_range is None or packed.input_range.divisors is None:
        return x
    factors = packed.initializer(FACTORS)
    return emit.shared(
        f"w8a8.smoothed.{packed.input_range.key}", x, lambda: emit.op("Mul", [x, factors], name=f"{x.name}.smoothed")
    )


def _index(value: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.array([value], dtype=np.int64)


def _flat(emit: Emitter, x: ir.Value, k: int) -> ir.Value:
    """X [..., K] → [rows, K], since QuantizeLinear takes its scales along one axis."""
    return emit.op("Reshape", [x, emit.constant(np.array([-1, k], dtype=np.int64))], name=f"{x.name}.rows")


def _leading_shape(emit: Emitter, x: ir.Value) -> ir.Value:
    """All dimensions of x but the last."""
    shape = emit.op("Shape", [x], name=f"{x.name}.shape")
    start, end = emit.constant(_index(0)), emit.constant(_index(-1))
    return emit.op("Slice", [shape, start, end], name=f"{x.name}.leading")


def _row_scales(emit: Emitter, rows: ir.Value) -> ir.Value:
    """Largest magnitude of each row / 127: float32 [rows]."""
    magnitude = emit.op("Abs", [rows], name=f"{rows.name}.magnitude")
    if emit.opset >= _AXES_AS_INPUT_OPSET:
        axes = emit.constant(_index(-1))
        peak = emit.op("ReduceMax", [magnitude, axes], {"keepdims": 0}, name=f"{rows.name}.peak")
    else:
        peak = emit.op("ReduceMax", [magnitude], {"axes": [-1], "keepdims": 0}, name=f"{rows.name}.peak")
    safe = emit.op("Max", [peak, emit.constant(np.array(_SMALLEST_PEAK))], name=f"{rows.name}.safe_peak")
    return emit.op("Div", [safe, emit.constant(np.array(127, np.float32))], name=f"{rows.name}.scale")


def _quantized_rows(emit: Emitter, rows: ir.Value, scales: ir.Value) -> ir.Value:
    """Uint8 [rows, K] around 128."""
    count = emit.op("Shape", [scales], name=f"{rows.name}.count")
    middle = ir.tensor(np.array([128], dtype=np.uint8))
    zeros = emit.op("ConstantOfShape", [count], {"value": middle}, name=f"{rows.name}.zero_point")
    return emit.op("QuantizeLinear", [rows, scales, zeros], {"axis": 0}, name=f"{rows.name}.uint8")


def _column(emit: Emitter, scales: ir.Value) -> ir.Value:
    """[rows] → [rows, 1]."""
    return emit.op("Unsqueeze", [scales, emit.constant(_index(1))], name=f"{scales.name}.column")
