"""Recognises rotary position embedding by what it does, not by how it is written. Knows no architecture and no rope type.

Between a projection and the attention there is a piece of graph that mixes in the positions. Fed with unit vectors it
shows its matrix R(p) for each position p; a rotary embedding is one where R(p) turns pairs of dimensions by the same
angle in every head (Su et al., RoFormer, arXiv 2104.09864). The tables of cosines and sines are then read off the very
same piece of graph, so that every scaling of the frequencies (linear, llama3, yarn, ...) is exact without being known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

_CHUNK = 1024
"""Positions evaluated at once while the tables are read: bounds the memory, nothing else."""
_TOLERANCE = 2e-6


class NotRotaryError(ValueError):
    """The piece of graph is something else; the message says what was seen."""


@dataclass(frozen=True)
class Pairing:
    """Which dimensions turn together: `first[i]` with `second[i]`."""

    first: tuple[int, ...]
    second: tuple[int, ...]
    interleaved: bool


@dataclass(frozen=True)
class Tables:
    """cos and sin, float32 [positions, rotary_dim / 2], scaled as the graph scales them."""

    cos: np.ndarray
    sin: np.ndarray


class Piece:
    """The piece of a graph from `source` to `target`, runnable on any positions.

    Args:
        source: [batch, heads, sequence, head_dim], [batch, sequence, heads, head_dim] or [batch, sequence, heads x head_dim].
        target: [batch, heads, sequence, head_dim].
        positions: The graph input with the positions, int64 [batch, sequence].
        heads: How many heads `target` has.
        head_dim: Their size.
    """

    def __init__(self, source: ir.Value, target: ir.Value, positions: ir.Value, heads: int, head_dim: int) -> None:
        from onnx.reference import ReferenceEvaluator

        graph = target.graph or source.graph
        if graph is None:
            raise ValueError("source and target belong to no graph")
        self.heads, self.head_dim = heads, head_dim
        self._layout = layout(source, heads, head_dim)
        self._source, self._positions = str(source.name), str(positions.name)
        others = [value for value in graph.inputs if value is not source and value is not positions]
        used = _inputs_between(source, target)
        self._others = [str(value.name) for value in others if value in used]
        inputs = [source, *(value for value in graph.inputs if value in used and value is not source)]
        piece = ir.convenience.extract(graph, inputs, [target])
        model = ir.Model(piece, ir_version=10)
        self._evaluator = ReferenceEvaluator(ir.to_proto(model))
        self._wanted = set(self._evaluator.input_names)

    def run(self, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """`target` for x float32 [batch, heads, sequence, head_dim] at positions int64 [batch, sequence]; same shape as x."""
        batch, _, sequence, _ = x.shape
        feeds = {name: np.zeros((batch, sequence), np.int64) for name in self._others}
        feeds[self._source] = self._arranged(x)
        feeds[self._positions] = positions
        feeds = {name: array for name, array in feeds.items() if name in self._wanted}
        result: np.ndarray = self._evaluator.run(None, feeds)[0]
        if result.shape != x.shape:
            raise NotRotaryError(f"the heads leave with shape {result.shape[1:]} where {x.shape[1:]} came in")
        return result

    def _arranged(self, x: np.ndarray) -> np.ndarray:
        if self._layout == "heads first":
            return x
        swapped = np.ascontiguousarray(x.transpose(0, 2, 1, 3))
        return swapped.reshape(*swapped.shape[:2], -1) if self._layout == "flat" else swapped


def layout(source: ir.Value, heads: int, head_dim: int) -> str:
    """How `source` holds its heads: "flat" [.., heads x head_dim], "heads first" or "sequence first".

    Raises:
        NotRotaryError: It does not hold `heads` heads of size `head_dim`.
    """
    sizes = list(source.shape) if source.shape is not None else []
    if len(sizes) == 3 and sizes[2] == heads * head_dim:
        return "flat"
    if len(sizes) == 4 and sizes[3] == head_dim and sizes[1] == heads:
        return "heads first"
    if len(sizes) == 4 and sizes[3] == head_dim and sizes[2] == heads:
        return "sequence first"
    raise NotRotaryError(f"a value of shape {source.shape} is not {heads} heads of size {head_dim}")


def _inputs_between(source: ir.Value, target: ir.Value) -> set[ir.Value]:
    """The graph inputs that `target` reads on paths not through `source`."""
    found: set[ir.Value] = set()
    stack, seen = [target], {source}
    while stack:
        value = stack.pop()
        if value in seen:
            continue
        seen.add(value)
        node = value.producer()
        if node is None:
            if value.is_graph_input():
                found.add(value)
            continue
        stack.extend(each for each in node.inputs if each is not None)
    return found


def matrices(piece: Piece, positions: Sequence[int]) -> np.ndarray:
    """R(p) for each of `positions`: float32 [positions, head_dim (out), head_dim (in)].

    Raises:
        NotRotaryError: The heads are not treated alike.
    """
    size, count = piece.head_dim, len(positions)
    # Each head gets its own factor, so that heads which change places are noticed.
    factors = np.arange(1, piece.heads + 1, dtype=np.float32)[None, :, None, None]
    units = np.eye(size, dtype=np.float32)[:, None, None, :] * factors
    x = np.broadcast_to(units, (size, piece.heads, count, size)).copy()
    where = np.broadcast_to(np.asarray(positions, np.int64), (size, count)).copy()
    result = piece.run(x, where) / factors
    if not np.allclose(result, result[:, :1], rtol=0, atol=_TOLERANCE):
        raise NotRotaryError("the heads are not treated alike")
    turned: np.ndarray = result[:, 0].transpose(1, 2, 0)
    return turned


def pairing(turned: np.ndarray) -> Pairing | None:
    """Which dimensions turn together, from R(p) float32 [positions, head_dim, head_dim]; None where nothing turns.

    Raises:
        NotRotaryError: The matrices are no rotations of pairs, or of pairs no kernel knows.
    """
    size = turned.shape[-1]
    diagonal = np.diagonal(turned, axis1=1, axis2=2)
    rest = np.abs(turned * (1 - np.eye(size, dtype=turned.dtype))).max(axis=0)
    coupled = [(i, j) for i in range(size) for j in range(i + 1, size) if max(rest[i, j], rest[j, i]) > 0]
    if not coupled:
        if np.abs(diagonal - 1).max() > _TOLERANCE:
            raise NotRotaryError("the heads are scaled by their position, not turned")
        return None
    found = _pairs(coupled, np.abs(diagonal - 1).max(axis=0) > _TOLERANCE)
    first, second = list(found.first), list(found.second)
    cos, sin = turned[:, first, first], turned[:, second, first]
    expected = np.broadcast_to(np.eye(size, dtype=turned.dtype), turned.shape).copy()
    expected[:, first, first] = expected[:, second, second] = cos
    expected[:, second, first], expected[:, first, second] = sin, -sin
    if not np.allclose(turned, expected, rtol=0, atol=_TOLERANCE * max(1.0, float(np.abs(turned).max()))):
        raise NotRotaryError("pairs of dimensions are mixed, but not turned by an angle")
    return found


def _pairs(coupled: Sequence[tuple[int, int]], scaled: np.ndarray) -> Pairing:
    distances = {j - i for i, j in coupled}
    if len(distances) != 1:
        raise NotRotaryError(f"dimensions are coupled at distances {sorted(distances)[:4]}")
    (distance,) = distances
    if distance == 1 and len(coupled) > 1 and all(i % 2 == 0 for i, _ in coupled):
        # A pair of frequency zero does not turn, but it may be scaled like its neighbours.
        last = max(coupled[-1][1], int(np.flatnonzero(scaled).max(initial=0)) | 1)
        return Pairing(tuple(range(0, last, 2)), tuple(range(1, last + 1, 2)), interleaved=True)
    if max(i for i, _ in coupled) >= distance:
        raise NotRotaryError(f"dimensions at distance {distance} are coupled beyond the first {distance}")
    return Pairing(tuple(range(distance)), tuple(range(distance, 2 * distance)), interleaved=False)


def tables(piece: Piece, pairs: Pairing, positions: np.ndarray, beside: int = 0) -> Tables:
    """cos and sin of every position (int64 [n]), read off the piece of graph itself.

    `beside` is the position of a token in a second row: frequencies that depend on the longest row (longrope) follow it.
    """
    first, second = list(pairs.first), list(pairs.second)
    unit = np.zeros(piece.head_dim, np.float32)
    unit[first] = 1
    cos, sin = [], []
    for start in range(0, len(positions), _CHUNK):
        chunk = positions[start : start + _CHUNK]
        rows = np.stack([chunk, np.full_like(chunk, beside)])
        x = np.broadcast_to(unit, (2, piece.heads, len(chunk), piece.head_dim)).copy()
        turned = piece.run(x, rows)[0, 0]
        cos.append(turned[:, first])
        sin.append(turned[:, second])
    return Tables(np.concatenate(cos).astype(np.float32), np.concatenate(sin).astype(np.float32))
