"""Where the inputs of products can be scaled channel by channel at no cost: behind a norm.

A product computes the same when its inputs are divided by scales and the columns of its weight multiplied by them. The
division costs nothing where the factor that made the inputs is a constant: the gamma and beta of a norm (SmoothQuant,
arXiv:2211.10438; AWQ, arXiv:2306.00978).
Finds such places in the structure of the graph; chooses no scales and knows no format.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aiasst.quantize.inventory import Found
from aiasst.quantize.matrix import FloatMatrix

FloatVector = npt.NDArray[np.float32]

# Norm operator → which inputs are gamma and beta.
_NORMS: dict[str, tuple[int, int | None]] = {
    "SimplifiedLayerNormalization": (1, None),
    "RMSNormalization": (1, None),
    "LayerNormalization": (1, 2),
    "SkipSimplifiedLayerNormalization": (2, None),
    "SkipLayerNormalization": (2, 3),
}


@dataclass(frozen=True)
class NormFold:
    """A norm whose output is read by products alone."""

    value: str
    """The norm's output, which the products read."""
    vectors: tuple[str, ...]
    """Names of gamma and, where there is one, beta, float32 [K] each: to be divided by the scales."""
    weights: tuple[str, ...]
    """Every weight that reads `value`: its columns are to be multiplied by the scales."""


def divide(vector: FloatVector, scales: FloatVector) -> FloatVector:
    """Gamma or beta [K] of a norm whose output is divided by `scales` [K]."""
    return (vector / scales).astype(np.float32)


def multiply_columns(rows: FloatMatrix, scales: FloatVector) -> FloatMatrix:
    """The weight [N, K] that undoes the division of its inputs by `scales` [K]."""
    return rows * scales


def divide_columns(rows: FloatMatrix, scales: FloatVector) -> FloatMatrix:
    """What a weight [N, K] behind folded scales comes to in terms of the inputs as they were."""
    return rows / scales


def is_norm(node: ir.Node | None) -> bool:
    """Whether a node is a norm with factors of its own."""
    return node is not None and node.op_type in _NORMS


def find_norms(found: Iterable[Found]) -> dict[str, NormFold]:
    """The norms that can take scales, by the name of their output."""
    products = _Products(found)
    folds = (_norm_fold(value, products) for value in products.inputs())
    return {fold.value: fold for fold in folds if fold is not None}


class _Products:
    """The weights of an inventory by the nodes that multiply with them."""

    def __init__(self, found: Iterable[Found]) -> None:
        self._of_node = {id(use.node): weight for weight in found for use in weight.uses if not use.lookup}
        self._weights = {id(weight): weight for weight in self._of_node.values()}

    def inputs(self) -> list[ir.Value]:
        """What the products read, each once, in the order of the weights."""
        values: dict[int, ir.Value] = {}
        for weight in self._weights.values():
            for use in weight.uses:
                value = None if use.lookup else use.node.inputs[0]
                if value is not None:
                    values.setdefault(id(value), value)
        return list(values.values())

    def readers(self, value: ir.Value) -> tuple[Found, ...]:
        """The weights that read `value`; none where anything else reads it, or one of them has a second purpose."""
        if value.is_graph_output():
            return ()
        readers: list[Found] = []
        for node, index in value.uses():
            weight = self._of_node.get(id(node))
            if weight is None or index != 0 or not _reads_only(weight, value):
                return ()
            if weight not in readers:
                readers.append(weight)
        return tuple(readers)


def _reads_only(weight: Found, value: ir.Value) -> bool:
    return all(not use.lookup and use.node.inputs[0] is value for use in weight.uses)


def _norm_fold(value: ir.Value, products: _Products) -> NormFold | None:
    norm, readers = value.producer(), products.readers(value)
    if norm is None or not readers or norm.op_type not in _NORMS or norm.outputs[0] is not value:
        return None
    gamma_at, beta_at = _NORMS[norm.op_type]
    vectors = [_input(norm, gamma_at)]
    beta = None if beta_at is None else _input(norm, beta_at)
    if beta is not None:
        vectors.append(beta)
    names = [_private_vector(vector, readers[0].matrix.k) for vector in vectors]
    if not all(names):
        return None
    return NormFold(value.name or "", tuple(names), _names(readers))


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _private_vector(value: ir.Value | None, size: int) -> str:
    """Name of a constant float32 [size] that one node reads; empty where `value` is none."""
    if value is None or value.const_value is None or not value.is_initializer():
        return ""
    tensor = value.const_value
    if tensor.dtype != ir.DataType.FLOAT or tuple(tensor.shape.numpy()) != (size,):
        return ""
    private = len(tuple(value.uses())) == 1 and not value.is_graph_input() and not value.is_graph_output()
    return (value.name or "") if private else ""


def _names(weights: Sequence[Found]) -> tuple[str, ...]:
    return tuple(weight.matrix.name for weight in weights)
