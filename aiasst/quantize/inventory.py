"""Which initializers of a graph are weights that can be quantized, and what the graph does with each. Knows no format."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from aiasst.artifacts.model_folder import Role, Weight
from aiasst.quantize.emit import MICROSOFT
from aiasst.quantize.matrix import LeftAlone, Matrix

# Operators that only a quantized graph has.
QUANTIZED_OPERATORS = frozenset(
    {
        "MatMulNBits", "GatherBlockQuantized", "DequantizeLinear", "QLinearMatMul", "QLinearConv", "MatMulInteger",
        "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "ConvInteger", "MatMulBnb4", "MatMulFpQ4", "QAttention",
    }
)  # fmt: skip

_PRODUCTS = frozenset({"MatMul", "Gemm", "FusedMatMul"})

# The last part of a module's name in the usual checkpoints → role.
_ROLES: dict[str, Role] = {
    "q_proj": "q", "k_proj": "k", "v_proj": "v", "query": "q", "key": "k", "value": "v", "qkv_proj": "qkv", "c_attn": "qkv",
    "o_proj": "o", "out_proj": "o", "gate_up_proj": "gate_up", "gate_proj": "gate", "up_proj": "up", "down_proj": "down",
    "lm_head": "lm_head", "classifier": "classifier", "score": "classifier", "word_embeddings": "embed",
    "embed_tokens": "embed", "wte": "embed", "position_embeddings": "position_embed", "wpe": "position_embed",
    "token_type_embeddings": "type_embed",
}  # fmt: skip


@dataclass(frozen=True)
class Use:
    """One node that reads a weight."""

    node: ir.Node
    lookup: bool
    """A Gather of rows; else a product."""
    rows_first: bool
    """The node sees the stored matrix as [N, K]."""


@dataclass(frozen=True)
class Found:
    """A weight that can be quantized."""

    matrix: Matrix
    value: ir.Value
    uses: tuple[Use, ...]


@dataclass(frozen=True)
class Inventory:
    """The weights of a graph, in the order of their first use."""

    found: tuple[Found, ...]
    left_alone: tuple[LeftAlone, ...]
    layers: int


def is_quantized(graph: ir.Graph) -> bool:
    """Whether the graph holds operators of quantized weights or activations."""
    return any(node.op_type in QUANTIZED_OPERATORS for node in graph.all_nodes())


def take_inventory(graph: ir.Graph, table: Mapping[str, Weight] | None) -> Inventory:
    """Look at every initializer of `graph` that a product or a lookup reads.

    `table` is the weight table of a manifest, which knows role and layer; None for a foreign graph, where names are asked.
    """
    order = {id(node): index for index, node in enumerate(graph)}
    found: list[Found] = []
    left: list[LeftAlone] = []
    for value in list(graph.initializers.values()):
        uses = _uses(value)
        if not uses:
            continue
        reason = _obstacle(graph, value, uses)
        if reason:
            left.append(LeftAlone(value.name or "", reason))
        else:
            found.append(_describe(value, tuple(u for u in uses if u is not None), table))
    found.sort(key=lambda f: min(order[id(use.node)] for use in f.uses))
    layers = 1 + max((f.matrix.layer for f in found if f.matrix.layer is not None), default=-1)
    return Inventory(tuple(found), tuple(left), layers)


def _uses(value: ir.Value) -> list[Use | None]:
    """What each reader does with `value`, None for what no format can serve; empty when `value` is no weight at all."""
    tensor = value.const_value
    if tensor is None or len(tensor.shape) < 2 or not tensor.dtype.is_floating_point():
        return []
    if not any(_is_weight(node, index) for node, index in value.uses()):
        return []
    return [_use(node, index) for node, index in value.uses()]


def _is_weight(node: ir.Node, index: int) -> bool:
    """Whether input `index` of `node` is the factor of a product or the table of a lookup."""
    return (node.op_type == "Gather" and index == 0) or (node.op_type in _PRODUCTS and index < 2)


def _use(node: ir.Node, index: int) -> Use | None:
    if node.op_type == "Gather" and index == 0 and _int(node, "axis") == 0:
        return Use(node, lookup=True, rows_first=True)
    if node.op_type not in _PRODUCTS or index != 1 or node.domain not in ("", "ai.onnx", MICROSOFT):
        return None
    if any(_int(node, name) for name in ("transA", "transBatchA", "transBatchB")):
        return None
    return Use(node, lookup=False, rows_first=bool(_int(node, "transB")))


def _int(node: ir.Node, name: str) -> int:
    attribute = node.attributes.get(name)
    return 0 if attribute is None else attribute.as_int()


def _obstacle(graph: ir.Graph, value: ir.Value, uses: list[Use | None]) -> str:
    """Why `value` has to stay as it is; empty when it can be quantized."""
    tensor = value.const_value
    assert tensor is not None
    if len(tensor.shape) != 2:
        return f"has {len(tensor.shape)} dimensions, not 2"
    if tensor.dtype != ir.DataType.FLOAT:
        return f"is {tensor.dtype.name.lower()}, not float32"
    if value.is_graph_output():
        return "is an output of the graph"
    for (node, index), use in zip(value.uses(), uses, strict=True):
        if use is None:
            odd = _is_weight(node, index)
            return f"is read by {node.op_type} " + ("in a form that no format has" if odd else "as well")
    if any(use is not None and use.node.graph is not graph for use in uses):
        return "is read inside a branch or a loop"
    if len({use.rows_first for use in uses if use is not None}) > 1:
        return "is read both as it lies and transposed"
    return ""


def _describe(value: ir.Value, uses: tuple[Use, ...], table: Mapping[str, Weight] | None) -> Found:
    name = value.name or ""
    assert value.const_value is not None
    first, second = (int(d) for d in value.const_value.shape.numpy())
    rows_first = uses[0].rows_first
    looks_up = any(use.lookup for use in uses)
    row = None if table is None else table.get(name)
    role, layer = _guess(name, uses, looks_up) if row is None else (row.role, row.layer)
    n, k = (first, second) if rows_first else (second, first)
    multiplies = any(not use.lookup for use in uses)
    first_row, _, vocabulary = row.rows if row is not None and row.rows is not None else (0, 0, None)
    return Found(Matrix(name, role, layer, n, k, rows_first, multiplies, looks_up, first_row, vocabulary), value, uses)


def _guess(name: str, uses: tuple[Use, ...], looks_up: bool) -> tuple[Role, int | None]:
    """Role and layer from the names of the weight and of the node that reads it."""
    words = f"{name}/{uses[0].node.name or ''}"
    parts = re.split(r"[./]", words)
    numbers = [int(part) for part in parts if part.isdigit()]
    roles = [_ROLES[part] for part in parts if part in _ROLES]
    role: Role = roles[0] if roles else "embed" if looks_up else "other"
    return role, numbers[0] if numbers else None
