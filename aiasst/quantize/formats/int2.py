"""int2: 2-bit weights in blocks of 32 to 128 (a block of 256 has no fast kernel). Fewest bytes, large loss without calibration."""

from __future__ import annotations

from aiasst.quantize.blockwise import Blockwise

FORMAT = Blockwise(bits=2)
