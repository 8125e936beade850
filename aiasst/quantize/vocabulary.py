"""Cuts embedding and head into ranges of rows, so that frequent tokens can have another format than rare ones. Knows no format.

Most vocabularies list their tokens by falling frequency (merges of byte pairs in the order they were learned, unigrams by
probability): the first quarter of the rows is used nine times in ten. A lookup becomes one lookup a piece, of which the token's
own is kept; a product becomes one product a piece, put together again. The numbers stay the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir import convenience

from aiasst.artifacts.model_folder import Weight
from aiasst.artifacts.recipe import VOCABULARY_ROLES
from aiasst.quantize.emit import Emitter, stem_of
from aiasst.quantize.inventory import Found, Inventory, Use
from aiasst.quantize.matrix import Matrix
from aiasst.quantize.source import QuantizeSource
from aiasst.quantize.weights_file import read_array

Cuts = Callable[[Matrix], Sequence[int]]
"""Inner cuts of a matrix, rising: each the first row of a new piece."""

# A Gemm adds its own bias, and scales; nobody looks tokens up in, or multiplies them by, anything but these.
_PRODUCTS = frozenset({"MatMul", "FusedMatMul"})


def cut_vocabulary(source: QuantizeSource, inventory: Inventory, cuts: Cuts) -> QuantizeSource:
    """Cut the embedding and the head of `source`; its graph is changed in place, and the source returned has the pieces' rows.

    What has no table of weights, or uses such a matrix in another way, is left whole.
    """
    if source.table is None:
        return source
    table, changed = dict(source.table), False
    emit = Emitter(source.model.graph)
    for found in inventory.found:
        wanted = cuts(found.matrix) if can_be_cut(found) else ()
        if wanted:
            pieces = _pieces(source.model.graph, found, [0, *wanted, found.matrix.n])
            for use in found.uses:
                _replace_use(emit, source.model.graph, use, pieces)
            del source.model.graph.initializers[found.matrix.name]
            table, changed = _with_pieces(table, found.matrix, pieces), True
    return replace(source, table=table) if changed else source


def can_be_cut(found: Found) -> bool:
    """Whether it is an embedding or a head whose every use a piece can have as well."""
    if found.matrix.planned_role not in VOCABULARY_ROLES or found.matrix.vocabulary is not None:
        return False
    return all(use.lookup or use.node.op_type in _PRODUCTS for use in found.uses)


@dataclass(frozen=True)
class _Piece:
    """Rows `begin` … `end` of a vocabulary."""

    value: ir.Value
    begin: int
    end: int


def _pieces(graph: ir.Graph, found: Found, bounds: Sequence[int]) -> list[_Piece]:
    pieces = []
    for begin, end in pairwise(bounds):
        name = f"{stem_of(found.matrix.name)}.{begin}-{end}.weight"
        assert found.value.const_value is not None
        tensor = _rows_of(found.value.const_value, begin, end, found.matrix.rows_first, name)
        shape = ir.Shape(tuple(int(d) for d in tensor.shape.numpy()))
        value = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(value)
        pieces.append(_Piece(value, begin, end))
    return pieces


def _rows_of(tensor: ir.TensorProtocol, begin: int, end: int, rows_first: bool, name: str) -> ir.TensorProtocol:
    """Some rows of a matrix, without reading them: another range of the same file, or a view that is made when asked for."""
    first, second = (int(d) for d in tensor.shape.numpy())
    if rows_first and isinstance(tensor, ir.ExternalTensor):
        row = second * tensor.dtype.itemsize
        return ir.ExternalTensor(
            tensor.location,
            (tensor.offset or 0) + begin * int(row),
            (end - begin) * int(row),
            tensor.dtype,
            shape=ir.Shape((end - begin, second)),
            name=name,
            base_dir=tensor.base_dir,
        )

    def view() -> ir.TensorProtocol:
        array: npt.NDArray[Any] = read_array(tensor)
        return ir.Tensor(array[begin:end] if rows_first else array[:, begin:end], dtype=tensor.dtype, name=name)

    shape = ir.Shape((end - begin, second) if rows_first else (first, end - begin))
    return ir.LazyTensor(view, tensor.dtype, shape, name=name, cache=False)


def _replace_use(emit: Emitter, graph: ir.Graph, use: Use, pieces: Sequence[_Piece]) -> None:
    node = use.node
    stem = node.name or stem_of(pieces[0].value.name or "")
    emit.release(node)
    result = _lookup(emit, node, pieces, stem) if use.lookup else _product(emit, node, pieces, stem)
    replaced = node.outputs[0]
    emit.place_before(node)
    result.shape, result.type = replaced.shape, replaced.type
    convenience.replace_all_uses_with(replaced, result, replace_graph_outputs=True)
    name, replaced.name = replaced.name, None
    result.name = name
    graph.remove(node, safe=True)


def _product(emit: Emitter, node: ir.Node, pieces: Sequence[_Piece], stem: str) -> ir.Value:
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    parts = [
        emit.op(
            node.op_type, [node.inputs[0], piece.value], attributes, name=f"{stem}.{piece.begin}", domain=node.domain
        )
        for piece in pieces
    ]
    return emit.op("Concat", parts, {"axis": -1}, name=stem)


def _lookup(emit: Emitter, node: ir.Node, pieces: Sequence[_Piece], stem: str) -> ir.Value:
    """Every piece is asked, with ids brought into its range; the last one whose first row is not behind the id answers."""
    ids = node.inputs[1]
    assert ids is not None
    kind = np.int64 if ids.dtype is None else ids.dtype.numpy()
    result: ir.Value | None = None
    for piece in pieces:
        first, last = (emit.constant(np.array(number, dtype=kind)) for number in (piece.begin, piece.end - 1))
        inside = emit.op("Clip", [ids, first, last], name=f"{stem}.{piece.begin}.inside")
        if piece.begin:
            inside = emit.op("Sub", [inside, first], name=f"{stem}.{piece.begin}.row")
        rows = emit.op("Gather", [piece.value, inside], {"axis": 0}, name=f"{stem}.{piece.begin}")
        rows.type = ir.TensorType(ir.DataType.FLOAT)
        if result is None:
            result = rows
            continue
        mine = emit.op("GreaterOrEqual", [ids, first], name=f"{stem}.{piece.begin}.mine")
        chosen = emit.op("Unsqueeze", [mine, emit.constant(np.array([-1]))], name=f"{stem}.{piece.begin}.chosen")
        result = emit.op("Where", [chosen, rows, result], name=f"{stem}.until.{piece.end}")
        result.type = ir.TensorType(ir.DataType.FLOAT)
    assert result is not None
    return result


def _with_pieces(table: Mapping[str, Weight], matrix: Matrix, pieces: Sequence[_Piece]) -> dict[str, Weight]:
    """The table with a row for each piece in place of the matrix's own, and of those that share its bytes."""
    result: dict[str, Weight] = {}
    for name, row in table.items():
        if name == matrix.name:
            result |= {piece.value.name or "": _piece_of(row, piece, matrix) for piece in pieces}
        elif row.shared_with == matrix.name:
            for piece in pieces:
                mine = _piece_of(row, piece, matrix).model_copy(update={"shared_with": piece.value.name, "bytes": 0})
                result[f"{stem_of(name)}.{piece.begin}-{piece.end}.weight"] = mine
        else:
            result[name] = row
    return result


def _piece_of(row: Weight, piece: _Piece, matrix: Matrix) -> Weight:
    count = piece.end - piece.begin
    shape = (count, matrix.k) if row.role == "embed" else (matrix.k, count)
    update = {"rows": (piece.begin, piece.end, matrix.n), "shape": shape, "bytes": 4 * count * matrix.k}
    return row.model_copy(update=update)
