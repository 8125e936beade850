"""A few plans, each the best under a slightly different idea of the losses, measured whole: the one that is truly best stays.

The exact plan is only as good as the predicted losses. Tables that are bent a little (coarse formats worse or better than thought,
one role dearer) give other exact plans within the same limits; all of them walk through the model together, so that a handful
costs little more than one. Knows no graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from aiasst.quantize.planning.solve import Choice, Table

# Bends the logarithm of the losses around the plan's typical loss: above 1 the large ones grow.
_POWERS = (0.8, 1.25)
_DEARER = 2.0

Solve = Callable[[Table], Choice | None]
"""Losses → the exact plan within the limits."""


def neighbours(losses: Table, roles: Sequence[str], solve: Solve, most: int) -> list[Choice]:
    """Up to `most` different plans, the exact one first.

    Args:
        losses: predicted, [units, columns].
        roles: of the units.
        solve: the planner with everything but the losses.
        most: how many plans to return at most.
    """
    found: list[Choice] = []
    for table in _bent(losses, roles):
        choice = solve(table)
        if choice is not None and not any(np.array_equal(choice, other) for other in found):
            found.append(choice)
        if len(found) == most:
            break
    return found


def _bent(losses: Table, roles: Sequence[str]) -> list[Table]:
    positive = losses[losses > 0]
    if not len(positive):
        return [losses]
    middle = float(np.median(positive))
    bent = [losses]
    with np.errstate(divide="ignore"):
        bent += [np.where(losses > 0, middle * (losses / middle) ** power, 0.0) for power in _POWERS]
    for role in dict.fromkeys(roles):
        mine: npt.NDArray[np.bool_] = np.array([other == role for other in roles])
        for factor in (_DEARER, 1 / _DEARER):
            bent.append(np.where(mine[:, None], losses * factor, losses))
    return bent
