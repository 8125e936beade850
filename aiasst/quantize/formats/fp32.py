"""fp32: the weight as it is."""

from __future__ import annotations

import numpy as np

from aiasst.quantize.floating import Floating

FORMAT = Floating(np.dtype(np.float32))
