"""The mean error of a product's outputs, moved into the bias that is there anyway. Knows no grid.

Rounding shifts the mean of an output by E[W x] - E[Q x']; added to the bias, the mean is right again at no cost in bytes or time.

Source: Nagel et al. 2019, Data-Free Quantization (arXiv:1906.04721), section 4.2, with means measured on calibration text.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from aiasst.quantize.matrix import FloatMatrix

FloatVector = npt.NDArray[np.float32]


def bias_shift(
    weight: FloatMatrix, rounded: FloatMatrix, mean_float: FloatVector, mean_quantized: FloatVector
) -> FloatVector:
    """What to add to the bias, float32 [N]: `weight` on the float chain's mean input [K] less `rounded` on the quantized one's."""
    shift: FloatVector = weight @ mean_float - rounded @ mean_quantized
    return shift
