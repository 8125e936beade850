"""Scales of an int8 cache: one a channel of a head, from the largest magnitudes that a text showed. Knows no graph and no text.

Symmetric and static, as the kernel has them: q = clip(round(x / scale), -128, 127). Keys differ from channel to channel by far
more than from token to token (KIVI, Liu et al. 2024, arXiv:2402.02750), so a channel has a scale of its own, and so have those
of values. Rotary embedding turns channels in pairs, by an angle that grows with the position: what one of them holds at one
position the other holds at another, so the two share what was seen of either.

What a calibration did not see is clipped, and a clipped key moves the attention of every token after it: that costs ten times as
much as coarser steps (measured, see DECISIONS.md). So narrow channels get headroom from the range of the widest one, by a
geometric mean such as SmoothQuant weighs two ranges with (Xiao et al. 2023, arXiv:2211.10438).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

LEVELS = 127
"""Steps on either side of zero."""
# Exponent of the widest range in that mean, and the most headroom that a channel gets: its steps grow by it.
_SHARE_OF_WIDEST, _MOST_HEADROOM = 0.3, 2.0
# A scale that is no normal number would be taken for zero.
_SMALLEST = float(np.finfo(np.float32).tiny) * LEVELS


@dataclass(frozen=True)
class Rotation:
    """How rotary embedding pairs the channels of a head; those behind the first `channels` stay as they are."""

    channels: int
    interleaved: bool
    """Pairs are neighbours (0, 1), (2, 3), …; else the halves of the rotated channels are paired: (0, n / 2), (1, n / 2 + 1), …"""

    def partners(self, head_dim: int) -> npt.NDArray[np.int64]:
        """The channel that each of the channels of a head is paired with, int64 [head_dim]; itself where it is not turned."""
        partners = np.arange(head_dim)
        turned = partners[: self.channels]
        partners[: self.channels] = turned ^ 1 if self.interleaved else np.roll(turned, self.channels // 2)
        return partners


def largest_magnitudes(cache: Array) -> Floats:
    """Of each channel over batch and tokens: [batch, heads, tokens, head_dim] → float32 [heads, head_dim]."""
    # Of the two ends, so that no array of magnitudes is made.
    ends = cache.max(axis=(0, 2)), cache.min(axis=(0, 2))
    largest: Floats = np.maximum(ends[0], -ends[1]).astype(np.float32)
    return largest


def shared_by_pairs(magnitudes: Floats, rotation: Rotation) -> Floats:
    """Both channels of a pair get the larger one of theirs, [heads, head_dim]."""
    shared: Floats = np.maximum(magnitudes, magnitudes[:, rotation.partners(magnitudes.shape[1])])
    return shared


def channel_scales(magnitudes: Floats) -> Floats:
    """Scales of channels in which `magnitudes` [heads, head_dim] were seen, float32 [1, heads, 1, head_dim], all positive.

    What was seen is not clipped, and up to twice as much in channels that are narrower than others. A channel that was zero all
    along has the range of the widest one: whatever comes there later is not clipped away.
    """
    widest = float(magnitudes.max(initial=0.0))
    known = np.maximum(np.where(magnitudes > 0, magnitudes, widest if widest > 0 else LEVELS), _SMALLEST)
    headroom = np.clip((widest / known.astype(np.float64)) ** _SHARE_OF_WIDEST, 1, _MOST_HEADROOM)
    scales: Floats = (known * headroom / LEVELS).astype(np.float32)
    return scales[None, :, None, :]
