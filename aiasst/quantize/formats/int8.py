"""int8: 8-bit weights in blocks of 32 to 256. As good as floating point for most models; the default of embeddings and heads."""

from __future__ import annotations

from aiasst.quantize.blockwise import Blockwise

FORMAT = Blockwise(bits=8)
