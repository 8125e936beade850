"""A float graph → the planned graph: each weight's new content is packed, written to the file, and its nodes are replaced.

One weight at a time, so that peak memory is about one weight. Knows neither what a format computes nor how a weight is rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir import convenience

from aiasst.artifacts.recipe import WeightFormat
from aiasst.errors import ArtifactError
from aiasst.progress import Progress, ProgressFn, silent
from aiasst.quantize import formats
from aiasst.quantize.calibrate.contents import Contents
from aiasst.quantize.emit import Emitter, PackedWeight, stem_of
from aiasst.quantize.grid import Quantized
from aiasst.quantize.inventory import Found, Use
from aiasst.quantize.matrix import FloatMatrix, Matrix
from aiasst.quantize.plan import Plan
from aiasst.quantize.ranges import FACTORS, InputRange
from aiasst.quantize.weights_file import WeightsFile

STAGE = "quantize"
# Smaller tensors stay in the graph: shape inference wants to see them.
_EXTERNAL_FROM_BYTES = 1024


@dataclass(frozen=True)
class BiasTarget:
    """The node whose result the new product gives: the product itself, or the Add that was fused into it."""

    node: ir.Node
    bias: ir.Value | None


def rewrite(
    graph: ir.Graph,
    weights: Sequence[Found],
    plan: Plan,
    contents: Contents,
    file: WeightsFile,
    *,
    progress: ProgressFn = silent,
) -> None:
    """Change `graph` in place: `weights` get the formats of `plan` (same order), and every large tensor moves to `file`.

    Raises:
        ArtifactError: a weight holds numbers that are not finite.
    """
    for name, vector in contents.vectors.items():
        graph.initializers[name].const_value = ir.Tensor(vector, name=name)
    emit = Emitter(graph)
    total, done = sum(found.matrix.elements for found in weights), 0
    for found, planned in zip(weights, plan.weights, strict=True):
        progress(Progress(STAGE, done, total, f"{found.matrix.name} → {planned.chosen.label}"))
        content = contents.matrix(found)
        if content is not None:
            found_range = contents.ranges.get(found.matrix.name)
            _replace_weight(emit, graph, found, planned.chosen, content, file, found_range)
        done += found.matrix.elements
        del content
    _move_tensors(graph, file)
    progress(Progress(STAGE, total, total, f"{plan.bits_per_weight:.2f} bits per weight"))


def pack_matrix(matrix: Matrix, content: Quantized | FloatMatrix, spec: WeightFormat) -> tuple[formats.Part, ...]:
    """Pack what is on the grid of `spec`, or float32 [N, K] where that has none.

    Raises:
        ArtifactError: the weight holds numbers that are not finite.
    """
    # The scales follow from the weights, and there are far fewer of them to look at.
    _refuse_not_finite(content.scales if isinstance(content, Quantized) else content, matrix)
    return formats.load(spec.format).pack(spec, matrix, content)


def _refuse_not_finite(numbers: FloatMatrix, matrix: Matrix) -> None:
    if not np.isfinite(numbers).all():
        raise ArtifactError(
            f"the weight {matrix.name} holds numbers that are not finite", "the checkpoint is damaged: get it again"
        )


def _replace_weight(
    emit: Emitter,
    graph: ir.Graph,
    found: Found,
    spec: WeightFormat,
    content: Quantized | FloatMatrix,
    file: WeightsFile,
    input_range: InputRange | None,
) -> None:
    parts = pack_matrix(found.matrix, content, spec)
    if spec.format == "fp32":
        # Other numbers in the same place: no node changes.
        found.value.const_value = file.write(found.matrix.name, parts[0].array)
        return
    stem = stem_of(found.matrix.name)
    tensors = {p.suffix: file.write(stem + p.suffix, p.array) for p in parts}
    if input_range is not None and input_range.divisors is not None:
        tensors[FACTORS] = file.write(stem + FACTORS, np.reciprocal(input_range.divisors))
    packed = PackedWeight(found.matrix, tensors, graph, input_range)
    for use in found.uses:
        _replace_use(emit, graph, use, spec, packed)
    if found.value.is_graph_input():
        # Files of old IR versions list every initializer as an input too.
        graph.inputs.remove(found.value)
    del graph.initializers[found.matrix.name]


def _replace_use(emit: Emitter, graph: ir.Graph, use: Use, spec: WeightFormat, packed: PackedWeight) -> None:
    format_ = formats.load(spec.format)
    node, name = use.node, use.node.name or stem_of(packed.matrix.name)
    emit.release(node)
    if use.lookup:
        ids = node.inputs[1]
        assert ids is not None
        _swap(emit, graph, [node], format_.lookup(emit, spec, packed, ids, name))
        return
    x = node.inputs[0]
    assert x is not None
    target = added_bias(node, packed.matrix.n) if format_.fuses_bias else BiasTarget(node, None)
    result = format_.product(emit, spec, packed, x, target.bias, name)
    if target.bias is None:
        result = _rest_of_gemm(emit, node, result, name)
    _swap(emit, graph, [node] if target.node is node else [target.node, node], result)


def added_bias(node: ir.Node, n: int) -> BiasTarget:
    """The constant bias [N] that is added to the product `node`, with the node that adds it; none where there is none."""
    plain = _float(node, "alpha") == 1 and _float(node, "beta") == 1
    if not plain:
        return BiasTarget(node, None)
    if node.op_type == "Gemm":
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        return BiasTarget(node, bias if bias is not None and _is_bias(bias, n) else None)
    product = node.outputs[0]
    readers = tuple(product.uses())
    if len(readers) != 1 or product.is_graph_output() or readers[0].node.op_type != "Add":
        return BiasTarget(node, None)
    add = readers[0].node
    other = add.inputs[1 - readers[0].idx]
    return BiasTarget(add, other) if other is not None and _is_bias(other, n) else BiasTarget(node, None)


def _is_bias(value: ir.Value, n: int) -> bool:
    tensor = value.const_value
    if tensor is None or not value.is_initializer() or value.is_graph_input():
        return False
    return tensor.dtype == ir.DataType.FLOAT and tuple(tensor.shape.numpy()) == (n,)


def _rest_of_gemm(emit: Emitter, node: ir.Node, product: ir.Value, name: str) -> ir.Value:
    """What Gemm and FusedMatMul do beside the product: times alpha, plus beta times C."""
    alpha, beta = _float(node, "alpha"), _float(node, "beta")
    if alpha != 1:
        product = emit.op("Mul", [product, emit.constant(np.array(alpha, np.float32))], name=f"{name}.alpha")
    addend = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
    if addend is None:
        return product
    if beta != 1:
        addend = emit.op("Mul", [addend, emit.constant(np.array(beta, np.float32))], name=f"{name}.beta")
    return emit.op("Add", [product, addend], name=f"{name}.bias")


def _float(node: ir.Node, name: str) -> float:
    attribute = node.attributes.get(name)
    return 1.0 if attribute is None else attribute.as_float()


def _swap(emit: Emitter, graph: ir.Graph, old: Sequence[ir.Node], result: ir.Value) -> None:
    """Put the collected nodes in place of `old`, whose first node's output `result` becomes, name and type included."""
    replaced = old[0].outputs[0]
    emit.place_before(old[0])
    result.shape, result.type = replaced.shape, replaced.type
    convenience.replace_all_uses_with(replaced, result, replace_graph_outputs=True)
    name, replaced.name = replaced.name, None
    result.name = name
    graph.remove(list(old), safe=True)


def _move_tensors(graph: ir.Graph, file: WeightsFile) -> None:
    """Take over the tensors that are not in `file` yet, one at a time: the source's own file will not be there."""
    for value in graph.initializers.values():
        tensor, name = value.const_value, value.name or ""
        if tensor is None or file.holds(tensor):
            continue
        if tensor.nbytes >= _EXTERNAL_FROM_BYTES:
            value.const_value = file.copy(name, tensor)
        elif isinstance(tensor, ir.ExternalTensor):
            value.const_value = ir.Tensor(np.array(tensor.numpy()), dtype=tensor.dtype, name=name)
