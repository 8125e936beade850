"""Planning: which weight gets which format, so that a budget is kept at the least loss. Writes no weights.

units (what is planned together) → streams and proxy (what really happens) → losses (of each unit in each format)
→ solve (the exact plan within the limits of budget and workload) → refine (measured as a whole) → mix (recipe, front)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiasst.quantize.planning.budget import Budget, Workload
from aiasst.quantize.planning.mix import Cell, FrontPoint, PlannedMix, recipe_yaml

if TYPE_CHECKING:
    from aiasst.quantize.planning.planner import plan_under_budget

__all__ = ["Budget", "Cell", "FrontPoint", "PlannedMix", "Workload", "plan_under_budget", "recipe_yaml"]


def __getattr__(name: str) -> Any:
    # Budgets are read before there is anything to plan; the planner brings torch.
    if name == "plan_under_budget":
        from aiasst.quantize.planning.planner import plan_under_budget

        return plan_under_budget
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
