"""Turns marked attention of a plain decoder graph into GroupQueryAttention with caches. Knows no architecture.

An exporter without fusions traces a model without a cache and leaves one marker node per layer where the attention is:

    aiasst.Attention(query [batch, heads, sequence, head_dim], key, value [batch, kv_heads, sequence, head_dim])
      → context [batch, sequence, heads, head_dim]

Everything else the layer's attention needs is told by `LayerAttention`. From each marker this module walks back over
the rotary embedding (see `rotary`), and puts in its place a com.microsoft GroupQueryAttention, fed by the projections
before the rotary embedding, with the past and present of its layer as graph inputs and outputs. What cannot be
expressed by that operator is refused, by layer and reason, never approximated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from aiasst.artifacts import signature
from aiasst.convert.finish.graph import Builder, add_weight, remove_unused, replace_uses
from aiasst.convert.tracing import operators, rotary
from aiasst.errors import ExportError
from aiasst.progress import Progress, ProgressFn, silent

MARKER_DOMAIN = operators.DOMAIN
MARKER = "Attention"
POSITION_IDS = "position_ids"
_HINT = "try another exporter with --exporter"
_PRODUCTS = frozenset({"MatMul", "Gemm", MARKER})


@dataclass(frozen=True)
class LayerAttention:
    """What one layer's attention computes beyond softmax(query · key) · value."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    softcap: float = 0.0
    """Scores become softcap · tanh(scores / softcap); 0 = as they are."""
    window: int | None = None
    """A token attends to itself and the window - 1 tokens before it; None = all tokens before it."""


@dataclass(frozen=True)
class Positions:
    """How far the rotary tables reach."""

    context: int
    """Positions there are."""
    switch: int | None = None
    """Rows longer than this turn by another set of frequencies (longrope's long factors); None = there is but one set."""


@dataclass(frozen=True)
class _Turn:
    """Rotary tables in the graph, float32 [positions, rotary_dim / 2], and whether neighbours turn together."""

    cos: ir.Value
    sin: ir.Value
    interleaved: bool


@dataclass(frozen=True)
class _Origin:
    """What a value is computed from."""

    tokens: bool
    positions: bool


def fuse(model: ir.Model, layers: Sequence[LayerAttention], reach: Positions, progress: ProgressFn = silent) -> None:
    """Replace every marker of `model`, in place, by GroupQueryAttention, and give the graph its caches.

    Args:
        model: Inputs input_ids and position_ids, int64 [batch, sequence]; the only output the logits; one marker per layer.
        layers: One entry a layer, in order.
        reach: How many positions the rotary tables cover.
        progress: Told once a layer.

    Raises:
        ExportError: A layer's attention is not what GroupQueryAttention computes.
    """
    graph = model.graph
    markers = [node for node in graph if node.domain == MARKER_DOMAIN and node.op_type == MARKER]
    if len(markers) != len(layers):
        raise ExportError(f"{len(layers)} layers were expected, {len(markers)} attentions found", _HINT)
    inputs = {value.name: value for value in graph.inputs}
    if set(inputs) != {signature.INPUT_IDS, POSITION_IDS}:
        raise ExportError(
            f"the traced graph takes {', '.join(sorted(map(str, inputs)))}, not {signature.INPUT_IDS} and {POSITION_IDS}: "
            "its positions cannot be followed",
            _HINT,
        )
    work = _Fusion(graph, inputs[POSITION_IDS], reach)
    for index, (marker, layer) in enumerate(zip(markers, layers, strict=True)):
        work.replace(index, marker, layer)
        progress(Progress("attention", index + 1, len(layers)))
    _drop_position_ids(graph, inputs[POSITION_IDS], work.lengths.positions)
    remove_unused(graph)
    model.opset_imports.pop(MARKER_DOMAIN, None)
    model.opset_imports["com.microsoft"] = 1


class _Fusion:
    """One graph on its way: the shared lengths, the rotary tables made so far, and the origin of every value."""

    def __init__(self, graph: ir.Graph, positions: ir.Value, reach: Positions) -> None:
        self.graph = graph
        self.positions = positions
        self.reach = reach
        self.origins = _origins(graph, positions)
        self.order = {node: place for place, node in enumerate(graph)}
        self.mask = _input(graph, signature.ATTENTION_MASK, ir.DataType.INT64, ["batch", "total_sequence"])
        self.lengths = _lengths(graph, self.mask, reach.switch)
        self.turns: dict[tuple[bool, bytes], _Turn] = {}

    def replace(self, index: int, marker: ir.Node, layer: LayerAttention) -> None:
        query, key, value = (_present(each) for each in marker.inputs[:3])
        try:
            query, turned_query = self._before_rotary(query, layer.heads, layer.head_dim)
            key, turned_key = self._before_rotary(key, layer.kv_heads, layer.head_dim)
            turn = self._tables(turned_query, turned_key)
        except rotary.NotRotaryError as error:
            raise ExportError(
                f"layer {index}: what positions do to query and key is no rotary embedding: {error}", _HINT
            ) from error
        build = Builder(self.graph, f"layers.{index}.attention")
        counts = (layer.heads, layer.kv_heads, layer.kv_heads)
        flat = [
            _flat(build, each, heads, layer.head_dim) for each, heads in zip((query, key, value), counts, strict=True)
        ]
        if turn is not None and self.lengths.table_rows is not None:
            flat[:2] = [
                _turned(build, each, turn, self.lengths.table_rows, heads)
                for each, heads in zip(flat[:2], counts, strict=False)
            ]
            turn = None
        context = self._attention(build, index, layer, flat, turn)
        node = build.nodes[-1]
        _place_context(build, marker, context, layer)
        self._presents(index, node, layer)

    def _attention(
        self, build: Builder, index: int, layer: LayerAttention, flat: Sequence[ir.Value], turn: _Turn | None
    ) -> ir.Value:
        """The GroupQueryAttention node; its context [batch, sequence, heads x head_dim]."""
        packed = _packed(flat)
        past = [
            _input(self.graph, name, ir.DataType.FLOAT, ["batch", layer.kv_heads, "past_sequence", layer.head_dim])
            for name in (signature.past_key(index), signature.past_value(index))
        ]
        projections = [packed, None, None] if packed is not None else flat
        tables = [turn.cos, turn.sin] if turn is not None else []
        rotation = {
            "do_rotary": int(turn is not None),
            "rotary_interleaved": int(turn is not None and turn.interleaved),
        }
        return build.op(
            "GroupQueryAttention", [*projections, *past, self.lengths.seqlens, self.lengths.total, *tables],
            domain="com.microsoft", outputs=3, name=f"layers.{index}.attention", **_attributes(layer), **rotation,
        )  # fmt: skip

    def _presents(self, index: int, node: ir.Node, layer: LayerAttention) -> None:
        names = (signature.present_key(index), signature.present_value(index))
        for output, name in zip(node.outputs[1:], names, strict=True):
            output.name, output.dtype = name, ir.DataType.FLOAT
            output.shape = ir.Shape(["batch", layer.kv_heads, "total_sequence", layer.head_dim])
            self.graph.outputs.append(output)

    def _before_rotary(self, value: ir.Value, heads: int, size: int) -> tuple[ir.Value, rotary.Piece | None]:
        """(the value before positions come in, the piece of graph that brings them in or None where nothing does)."""
        region = _region(value, self.origins, self.order)
        mixers = [node for node in region if self._mixes(node)]
        if not mixers:
            return value, None
        source = _waist(value, region, mixers, self.origins)
        if source is None:
            raise rotary.NotRotaryError("there is no single value before the positions come in")
        return source, rotary.Piece(source, value, self.positions, heads, size)

    def _mixes(self, node: ir.Node) -> bool:
        kinds = [self.origins[value] for value in node.inputs if value in self.origins]
        return any(kind.tokens for kind in kinds) and any(kind.positions and not kind.tokens for kind in kinds)

    def _tables(self, query: rotary.Piece | None, key: rotary.Piece | None) -> _Turn | None:
        """How this layer's query and key turn; None for a layer without rotary embedding."""
        if query is None and key is None:
            return None
        if query is None or key is None:
            raise rotary.NotRotaryError("only one of query and key has it")
        # With two sets of frequencies all of the sample must fall into the first.
        last = (self.reach.switch or self.reach.context) - 1
        sample = sorted({0, 1, 2, 3, min(17, last), last // 2, last})
        turned = rotary.matrices(key, sample)
        if not np.allclose(rotary.matrices(query, sample), turned, rtol=0, atol=1e-6):
            raise rotary.NotRotaryError("query and key are not turned alike")
        pairs = rotary.pairing(turned)
        if pairs is None:
            return None
        stamp = (pairs.interleaved, turned.tobytes())
        if stamp not in self.turns:
            self.turns[stamp] = self._new_tables(key, pairs)
        return self.turns[stamp]

    def _new_tables(self, piece: rotary.Piece, pairs: rotary.Pairing) -> _Turn:
        positions, switch = np.arange(self.reach.context, dtype=np.int64), self.reach.switch
        if switch is None:
            made = rotary.tables(piece, pairs, positions)
            cos, sin = made.cos, made.sin
        else:
            short = rotary.tables(piece, pairs, positions[:switch])
            long = rotary.tables(piece, pairs, positions, beside=self.reach.context - 1)
            cos, sin = np.concatenate([short.cos, long.cos]), np.concatenate([short.sin, long.sin])
        suffix = "" if not self.turns else f".{len(self.turns)}"
        return _Turn(
            add_weight(self.graph, f"rotary.cos{suffix}", ir.Tensor(cos)),
            add_weight(self.graph, f"rotary.sin{suffix}", ir.Tensor(sin)),
            pairs.interleaved,
        )


def _attributes(layer: LayerAttention) -> dict[str, int | float]:
    found: dict[str, int | float] = {
        "num_heads": layer.heads,
        "kv_num_heads": layer.kv_heads,
        "scale": layer.scale,
        "local_window_size": -1 if layer.window is None else layer.window,
    }
    if layer.softcap:
        found["softcap"] = layer.softcap
    return found


def _place_context(build: Builder, marker: ir.Node, context: ir.Value, layer: LayerAttention) -> None:
    """Put the nodes in the marker's place; readers that only merge the heads read the merged context directly."""
    merged = layer.heads * layer.head_dim
    node = build.nodes[-1]
    old = marker.outputs[0]
    context.dtype = ir.DataType.FLOAT
    context.shape = ir.Shape([*(old.shape[:2] if old.shape is not None else (None, None)), merged])
    mergers = [
        reader
        for reader in old.consumers()
        if reader.op_type == "Reshape" and _sizes(reader.outputs[0])[2:] == [merged]
    ]
    build.place_before(marker)
    for merger in mergers:
        replace_uses(merger.outputs[0], context)
    if set(old.consumers()) - set(mergers):
        split = Builder(build.graph, f"{build.prefix}.heads")
        heads = split.op("Reshape", [context, split.constant([0, 0, layer.heads, layer.head_dim])])
        split.place_after(node)
        replace_uses(old, heads, keep=mergers)


def _sizes(value: ir.Value) -> list[int | None]:
    return [size if isinstance(size, int) else None for size in value.shape] if value.shape is not None else []


def _origins(graph: ir.Graph, positions: ir.Value) -> dict[ir.Value, _Origin]:
    """For every value whether tokens or positions (their content, not their shape) went into it; markers count as tokens."""
    found = {
        value: _Origin(tokens=value is not positions, positions=value is positions) for value in graph.inputs
    }  # fmt: skip
    for node in graph:
        kinds = [found[value] for value in node.inputs if value in found]
        origin = _Origin(any(kind.tokens for kind in kinds), any(kind.positions for kind in kinds))
        if node.op_type == "Shape":
            origin = _Origin(tokens=False, positions=False)
        elif node.domain == MARKER_DOMAIN:
            origin = _Origin(tokens=True, positions=False)
        found.update(dict.fromkeys(node.outputs, origin))
    return found


def _region(value: ir.Value, origins: dict[ir.Value, _Origin], order: dict[ir.Node, int]) -> list[ir.Node]:
    """The nodes between the projections and `value` along the tokens' path, in the order of the graph."""
    found: set[ir.Node] = set()
    stack: list[ir.Value] = [value]
    while stack:
        node = stack.pop().producer()
        if node is None or node in found or node.op_type in _PRODUCTS:
            continue
        found.add(node)
        stack.extend(each for each in node.inputs if each is not None and each in origins and origins[each].tokens)
    return sorted(found, key=order.__getitem__)


def _waist(
    value: ir.Value, region: Sequence[ir.Node], mixers: Sequence[ir.Node], origins: dict[ir.Value, _Origin]
) -> ir.Value | None:
    """The last value that all of `value` comes through and that no position has reached yet."""
    tainted: set[ir.Value] = set()
    for node in region:
        if node in mixers or any(each in tainted for each in node.inputs):
            tainted.update(node.outputs)
    candidates: list[ir.Value] = []
    for node in region:
        outside = [each for each in node.inputs if each is not None and each in origins and origins[each].tokens]
        candidates += [each for each in (*outside, *node.outputs) if each not in tainted and each not in candidates]
    passing = [each for each in candidates if _all_through(value, each, set(region), origins)]
    return passing[-1] if passing else None


def _all_through(value: ir.Value, waist: ir.Value, region: set[ir.Node], origins: dict[ir.Value, _Origin]) -> bool:
    """Whether every path of tokens from outside the region to `value` leads through `waist`."""
    stack, seen = [value], {waist}
    while stack:
        current = stack.pop()
        if current in seen:
            continue
        seen.add(current)
        node = current.producer()
        if node is None or node not in region:
            return False
        stack.extend(each for each in node.inputs if each is not None and each in origins and origins[each].tokens)
    return True


def _flat(build: Builder, value: ir.Value, heads: int, head_dim: int) -> ir.Value:
    """`value` as [batch, sequence, heads x head_dim]: the one its heads were split from, where nothing else happened."""
    while (kind := rotary.layout(value, heads, head_dim)) != "flat":
        node = value.producer()
        source = _present(node.inputs[0]) if node is not None and node.inputs else None
        if node is None or source is None or not _only_reshapes(node, source, heads * head_dim):
            if kind == "heads first":
                value = build.op("Transpose", [value], perm=[0, 2, 1, 3])
            value = build.op("Reshape", [value, build.constant([0, 0, -1])])
            value.shape, value.dtype = ir.Shape([None, None, heads * head_dim]), ir.DataType.FLOAT
            return value
        value = source
    return value


def _turned(build: Builder, flat: ir.Value, turn: _Turn, table_rows: ir.Value, heads: int) -> ir.Value:
    """`flat` [batch, sequence, heads x head_dim] turned by a node of its own.

    Inside GroupQueryAttention the rows of a prompt would share the first row's place in the tables.
    """
    tensor = turn.cos.const_value
    half = int(tensor.shape[1]) if tensor is not None else 0  # type: ignore[arg-type]
    turned = build.op(
        "RotaryEmbedding", [flat, table_rows, turn.cos, turn.sin], domain="com.microsoft",
        interleaved=int(turn.interleaved), num_heads=heads, rotary_embedding_dim=2 * half,
    )  # fmt: skip
    turned.shape = flat.shape
    return turned


def _only_reshapes(node: ir.Node, source: ir.Value, width: int) -> bool:
    """Whether `node` merely swaps heads and sequence, or splits [batch, sequence, width] into heads."""
    if node.op_type == "Transpose":
        return tuple(node.attributes["perm"].as_ints()) == (0, 2, 1, 3)
    if node.op_type == "Reshape":
        sizes = _sizes(source)
        return len(sizes) == 3 and sizes[2] == width and _sizes(node.outputs[0])[2:3] != [None]
    return node.op_type == "Identity"


def _packed(flat: Sequence[ir.Value]) -> ir.Value | None:
    """The product that query, key and value are consecutive parts of, where they are all of it."""
    parts = [_part(value) for value in flat]
    found = [part for part in parts if part is not None]
    if len(found) != 3 or any(part[0] is not found[0][0] for part in found):
        return None
    whole, end = found[0][0], 0
    for _, start, stop in found:
        if start != end:
            return None
        end = stop
    return whole if _sizes(whole)[2:] == [end] else None


def _part(value: ir.Value) -> tuple[ir.Value, int, int] | None:
    """(whole, start, stop): `value` is whole[..., start:stop]; None where it is something else."""
    node = value.producer()
    sizes = _sizes(value)
    if node is None or node.op_type not in ("Split", "Slice") or len(sizes) != 3 or sizes[2] is None:
        return None
    whole = _present(node.inputs[0])
    if node.op_type == "Split":
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
        before = [_sizes(each)[2] for each in node.outputs[: list(node.outputs).index(value)]]
        if axis not in (-1, 2) or None in before:
            return None
        start = sum(size for size in before if size is not None)
        return whole, start, start + sizes[2]
    bounds = [_scalar(each) for each in node.inputs[1:]]
    if len(bounds) < 3 or bounds[2] not in (-1, 2) or bounds[0] is None or bounds[0] < 0 or bounds[3:] not in ([], [1]):
        return None
    return whole, bounds[0], bounds[0] + sizes[2]


def _scalar(value: ir.Value | None) -> int | None:
    """The only element of a constant, or None."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return int(tensor.numpy().reshape(-1)[0]) if tensor is not None and tensor.size == 1 else None


def _present(value: ir.Value | None) -> ir.Value:
    if value is None:
        raise ExportError("a node of the traced graph lacks an input it needs", _HINT)
    return value


def _input(graph: ir.Graph, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
    """A new graph input, after those there are."""
    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
    graph.inputs.append(value)
    return value


@dataclass(frozen=True)
class _Lengths:
    """What all layers read off the attention mask."""

    seqlens: ir.Value
    """int32 [batch]: length of each row - 1."""
    total: ir.Value
    """int32 []: width of the mask."""
    positions: ir.Value
    """int64 [batch, sequence]: a row's new tokens start at max(row sum - sequence, 0)."""
    table_rows: ir.Value | None
    """int64 [batch, sequence]: where to look into tables that hold two sets of frequencies, one after the other."""


def _lengths(graph: ir.Graph, mask: ir.Value, switch: int | None) -> _Lengths:
    ids = graph.inputs[0]
    build = Builder(graph, "lengths")
    zero, one, axis = build.constant(0), build.constant(1), build.constant([1])
    rows = build.op("ReduceSum", [mask, axis], keepdims=0)
    seqlens = build.op("Cast", [build.op("Sub", [rows, one])], to=ir.DataType.INT32)
    total = build.op("Cast", [build.op("Gather", [build.op("Shape", [mask]), one])], to=ir.DataType.INT32)
    seqlens.dtype = total.dtype = ir.DataType.INT32
    sequence = build.op("Gather", [build.op("Shape", [ids]), one])
    start = build.op("Max", [build.op("Sub", [rows, sequence]), zero])
    start = build.op("Unsqueeze", [start, axis])
    positions = build.op("Add", [start, build.op("Range", [zero, sequence, one])], name=POSITION_IDS)
    table_rows = None
    if switch is not None:
        skip = build.op("Where", [build.op("Greater", [rows, build.constant(switch)]), build.constant(switch), zero])
        table_rows = build.op("Add", [positions, build.op("Unsqueeze", [skip, axis])], name="table_rows")
        table_rows.dtype = ir.DataType.INT64
    build.place_first()
    return _Lengths(seqlens, total, positions, table_rows)


def _drop_position_ids(graph: ir.Graph, given: ir.Value, computed: ir.Value) -> None:
    """Take the input away; what still reads it reads the `computed` positions."""
    graph.inputs.remove(given)
    for reader in given.consumers():
        if reader.op_type == "Shape":
            reader.replace_input_with(0, graph.inputs[0])
    replace_uses(given, computed)
