"""w8a8_static: int8 weights with a scale a channel, uint8 activations in a range that calibration found. The fastest of an encoder.

As `w8a8`, but what an input is rounded by does not follow from its rows: one pass rounds it, and the product adds the bias. The
range belongs to the tensor and to no row, so that here too a text's answer does not depend on its neighbours. A product that
calibration has seen nothing of is computed as in `w8a8`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from aiasst.artifacts.recipe import WeightFormat
from aiasst.quantize.emit import MICROSOFT, Emitter, PackedWeight
from aiasst.quantize.formats.w8a8 import SCALES, VALUES, W8A8, smoothed
from aiasst.quantize.ranges import InputRange


@dataclass(frozen=True)
class W8A8Static(W8A8):
    """The `Format` of per-channel int8 weights and uint8 activations of a fixed range."""

    fuses_bias: bool = True

    def product(
        self, emit: Emitter, spec: WeightFormat, packed: PackedWeight, x: ir.Value, bias: ir.Value | None, name: str
    ) -> ir.Value:
        """One rounding, shared by all products that read the same, and one integer product with its bias."""
        if packed.input_range is None or packed.input_range.by_row:
            product = super().product(emit, spec, packed, x, None, name)
            return product if bias is None else emit.op("Add", [product, bias], name=f"{name}.bias_added")
        scale, zero_point = _constants(emit, packed.input_range)
        x = smoothed(emit, x, packed)
        rounded = emit.shared(
            f"w8a8.static.{packed.input_range.key}",
            x,
            lambda: emit.op("QuantizeLinear", [x, scale, zero_point], name=f"{x.name}.uint8"),
        )
        symmetric = None
        inputs = [rounded, packed.initializer(VALUES), scale, packed.initializer(SCALES), zero_point, symmetric, bias]
        while inputs[-1] is None:
            inputs.pop()
        return emit.op("MatMulIntegerToFloat", inputs, domain=MICROSOFT, name=name)


FORMAT = W8A8Static()


def _constants(emit: Emitter, found: InputRange) -> tuple[ir.Value, ir.Value]:
    scale = emit.constant(np.array(found.scale, np.float32))
    return scale, emit.constant(np.array(found.zero_point, np.uint8))
