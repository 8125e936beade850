"""Which texts run together: texts of like length, so that little is padded. Numbers only; knows no text."""

from __future__ import annotations

from collections.abc import Sequence


def batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Indices of texts, batch by batch, longest first.

    Args:
        lengths: tokens of each text.
        token_budget: most tokens of a batch, padding included; a text that is longer runs alone.

    Returns:
        Every index once; texts of one length in their order.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    found: list[list[int]] = []
    for index in order:
        # The first of a batch is its longest, so it is what the others are padded to.
        if found and (len(found[-1]) + 1) * lengths[found[-1][0]] <= token_budget:
            found[-1].append(index)
        else:
            found.append([index])
    return found
