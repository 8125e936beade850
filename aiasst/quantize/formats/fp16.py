"""fp16: half-precision storage, float32 computation. Halves the file, not the time nor the memory."""

from __future__ import annotations

import numpy as np

from aiasst.quantize.floating import Floating

FORMAT = Floating(np.dtype(np.float16))
