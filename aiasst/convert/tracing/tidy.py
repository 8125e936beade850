"""Makes a freshly traced graph small: constants folded, common parts shared, dead ones gone. Knows no architecture."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from aiasst.convert.finish import folding
from aiasst.convert.finish.graph import Builder, add_constant, remove_unused, replace_uses, single_reader

_FOLD_LIMIT = 1024
"""Elements a constant may have to be folded by evaluation: shapes and scalars, never a weight."""


def tidy(model: ir.Model) -> None:
    """Simplify `model` in place; transposed and shifted weights become lazy initializers that keep their name."""
    import onnx_ir.passes.common as passes
    from onnxscript import optimizer

    passes.InlinePass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.IdentityEliminationPass()(model)
    folding.apply(model.graph)
    optimizer.optimize(model, input_size_limit=_FOLD_LIMIT)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.CommonSubexpressionEliminationPass()(model)
    settle(model)


def settle(model: ir.Model) -> None:
    """What can be done with the shapes that are known: constant targets, norms before transposes; then drop what is dead."""
    _fix_reshapes(model.graph)
    _norms_before_transposes(model.graph)
    drop_dead(model)


def keep_first_output(graph: ir.Graph) -> None:
    """Drop every output but the first: a pooled state, a mutated buffer."""
    while len(graph.outputs) > 1:
        graph.outputs.pop()


def _fix_reshapes(graph: ir.Graph) -> None:
    """Give every Reshape a constant target where the shapes are known up to sizes that stay in place; drop idle ones."""
    for node in tuple(graph):
        target = _target(node) if node.op_type == "Reshape" else None
        source = node.inputs[0] if node.inputs else None
        if target is not None and source is not None and source.shape == node.outputs[0].shape:
            replace_uses(node.outputs[0], source)
        elif target is not None:
            node.attributes.pop("allowzero", None)
            node.replace_input_with(1, add_constant(graph, target))


def _target(node: ir.Node) -> list[int] | None:
    """The target of a Reshape in numbers: 0 for an axis that stays as it is, -1 for one that is free."""
    source = node.inputs[0]
    before, after = source.shape if source is not None else None, node.outputs[0].shape
    if before is None or after is None or 0 in before or 0 in after:
        return None
    target: list[int] = []
    for axis, size in enumerate(after):
        stays = axis < len(before) and not isinstance(size, int) and size.value is not None and before[axis] == size
        target.append(size if isinstance(size, int) else 0 if stays else -1)
    return target if target.count(-1) <= 1 else None


def _norms_before_transposes(graph: ir.Graph) -> None:
    """Norm(Transpose(x)) becomes Transpose(Norm(x)) where the last axis stays last: a row is a row wherever it lies."""
    for node in tuple(graph):
        source = node.inputs[0] if node.op_type == "RMSNormalization" else None
        swap = source.producer() if source is not None else None
        if source is None or swap is None or swap.op_type != "Transpose" or single_reader(source) is not node:
            continue
        perm = list(swap.attributes["perm"].as_ints())
        before = swap.inputs[0]
        if before is None or perm[-1] != len(perm) - 1 or _axis(node) not in (-1, len(perm) - 1):
            continue
        old = node.outputs[0]
        build = Builder(graph, node.name or "norm")
        normed = build.op(node.op_type, [before, *node.inputs[1:]], **_values(node))
        swapped = build.op("Transpose", [normed], perm=perm)
        normed.shape, swapped.shape = before.shape, old.shape
        normed.dtype = swapped.dtype = old.dtype or before.dtype or ir.DataType.FLOAT
        build.place_before(node)
        replace_uses(old, swapped)
        graph.remove(node, safe=True)


def _axis(node: ir.Node) -> int:
    return node.attributes["axis"].as_int() if "axis" in node.attributes else -1


def _values(node: ir.Node) -> dict[str, Any]:
    return {name: attribute.value for name, attribute in node.attributes.items()}


def drop_dead(model: ir.Model) -> None:
    """Remove what nobody reads and the traces the tracer left on the nodes, and make names unique."""
    import onnx_ir.passes.common as passes

    passes.ClearMetadataAndDocStringPass()(model)
    remove_unused(model.graph)
    passes.RemoveUnusedOpsetsPass()(model)
    passes.NameFixPass()(model)
