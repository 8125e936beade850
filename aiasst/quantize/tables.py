"""The weight table of a quantized folder: rows of what was planned and of what stays. Reads no weight."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from aiasst.artifacts.model_folder import Weight
from aiasst.quantize.fitting import PlannedWeight
from aiasst.quantize.inventory import Inventory
from aiasst.quantize.plan import Plan
from aiasst.quantize.source import QuantizeSource


def other_rows(source: QuantizeSource, inventory: Inventory) -> dict[str, Weight]:
    """Rows beside the matrices that are planned: the manifest's, or a foreign graph's float tensors."""
    planned = {found.matrix.name for found in inventory.found}
    if source.table is not None:
        return {name: row for name, row in source.table.items() if name not in planned}
    return {
        name: _foreign_row(value.const_value)
        for name, value in source.model.graph.initializers.items()
        if name not in planned and value.const_value is not None and value.const_value.dtype.is_floating_point()
    }


def unnamed_bytes(source: QuantizeSource, inventory: Inventory) -> int:
    """Bytes of the constants that no row names."""
    named = {found.matrix.name for found in inventory.found} | other_rows(source, inventory).keys()
    constants = source.model.graph.initializers.values()
    return sum(v.const_value.nbytes for v in constants if v.const_value is not None and v.name not in named)


def planned_rows(plan: Plan, others: Mapping[str, Weight]) -> dict[str, Weight]:
    """The rows of `plan`, then `others`; one that shares a planned weight's bytes takes over its format."""
    planned = {weight.matrix.name: _row(weight) for weight in plan.weights}
    return planned | {name: _share(row, planned) for name, row in others.items()}


def _row(planned: PlannedWeight) -> Weight:
    matrix = planned.matrix
    return Weight(
        role=matrix.role,
        layer=matrix.layer,
        shape=(matrix.n, matrix.k) if matrix.looks_up else (matrix.k, matrix.n),
        format=planned.chosen.label,
        bytes=planned.bytes_after,
        rows=None if matrix.vocabulary is None else (matrix.first_row, matrix.first_row + matrix.n, matrix.vocabulary),
    )


def _share(row: Weight, planned: Mapping[str, Weight]) -> Weight:
    if row.shared_with is None or row.shared_with not in planned:
        return row
    return row.model_copy(update={"format": planned[row.shared_with].format})


def _foreign_row(tensor: ir.TensorProtocol) -> Weight:
    shape = tuple(int(d) for d in tensor.shape.numpy())
    return Weight(role="other", layer=None, shape=shape, format=tensor.dtype.name.lower(), bytes=tensor.nbytes)
