"""int4: 4-bit weights in blocks of 32 to 256. The fastest format for one to a few sequences at once; accuracy wants calibration."""

from __future__ import annotations

from aiasst.quantize.blockwise import Blockwise

FORMAT = Blockwise(bits=4)
