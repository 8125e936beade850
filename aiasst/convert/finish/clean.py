"""Takes away what no one runs: function bodies of fused operators, metadata, identities, constants as nodes. Changes no result."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common

from aiasst.convert.finish.graph import remove_unused


def lift(model: ir.Model) -> bool:
    """Make every constant an initializer, so that the passes meet one form of constant only."""
    modified = bool(model.functions)
    # Portable bodies of operators that ONNX Runtime has kernels for; with them it may inline instead of calling the kernel.
    model.functions.clear()
    passes = ir.passes.PassManager(
        [
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            common.IdentityEliminationPass(),
        ]
    )
    return bool(passes(model).modified) or modified


def tidy(model: ir.Model) -> bool:
    """Drop unused nodes, initializers and metadata; sort; name every node once; declare only the domains in use."""
    graph = model.graph
    modified = remove_unused(graph)
    common.ClearMetadataAndDocStringPass()(model)
    model.metadata_props.clear()
    graph.metadata_props.clear()
    graph.sort()
    graph.name = "main"
    _unique_names(graph)
    used = {node.domain for node in graph}
    for domain in tuple(graph.opset_imports):
        if domain not in used:
            del graph.opset_imports[domain]
            modified = True
    for domain in used - set(graph.opset_imports):
        graph.opset_imports[domain] = 1
    return modified


def _unique_names(graph: ir.Graph) -> None:
    """Number the nodes that share a name, and name after their node the values of no public name."""
    seen: set[str] = set()
    public = {value.name for value in (*graph.inputs, *graph.outputs)} | set(graph.initializers)
    for node in graph:
        base, count = node.name or node.op_type, 1
        name = base
        while name in seen:
            count += 1
            name = f"{base}_{count}"
        seen.add(name)
        node.name = name
        for index, output in enumerate(node.outputs):
            if not output.is_graph_output():
                # Types and shapes recorded before the passes may be wrong by now; the runtime infers them anew.
                output.type = output.shape = None
                output.name = f"{name}.out{index}" if f"{name}.out{index}" not in public else f"{name}.value{index}"
