"""AWQ: scales folded into the norm before a product protect the channels that matter; rounding is `mse`, weighted by energy.

Needs the energy of the inputs alone: a tenth of the time of `gptq`, and no Hessians in memory. The scales themselves are chosen in
`corrections.equalization`.

Source: Lin et al. 2023, AWQ (arXiv:2306.00978).
"""

from __future__ import annotations

from aiasst.quantize.algorithms import InputStatistics, Need, mse
from aiasst.quantize.grid import Grid, Quantized
from aiasst.quantize.matrix import FloatMatrix

NEEDS: Need = "energy"
EQUALIZES = True
PROPAGATES = False


def quantize(weight: FloatMatrix, grid: Grid, statistics: InputStatistics | None = None) -> Quantized:
    """Bring float32 [N, K] onto `grid`; channels of high energy weigh more in the choice of a scale."""
    return mse.quantize(weight, grid, statistics)
