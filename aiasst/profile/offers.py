"""The forms that `aiasst quantize` can give a model, and what each takes: bytes on disk, bytes in memory. Knows no machine.

An offer is a recipe that comes with the program, or a plan of so many bits a weight: what that becomes is only known once it is
planned, so it is taken for a mixture of the two uniform recipes around it, and the true one lies near.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from aiasst.artifacts.recipe import BLOCK_FORMATS, Recipe, WeightFormat, load_recipe
from aiasst.engine.cache import WEIGHTS_IN_MEMORY
from aiasst.profile.ranges import Range, total
from aiasst.profile.shapes import MatrixShape, ModelShape

_BITS = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4, "int2": 2}
_PACKED = Range(1.0, WEIGHTS_IN_MEMORY, 1.35)
"""Memory for a weight by its size on disk: the kernels' own layout pads, and while it is made the original is there as well."""
_WIDENED = Range(2.0, 2.1, 3.0)
"""The same for fp16, which a CPU computes with as float32."""
_GRAPH_BYTES = 5000
"""Of the graph itself, for each layer."""


@dataclass(frozen=True)
class Part:
    """Matrices of one shape in one format, or a share of them."""

    matrix: MatrixShape
    spec: WeightFormat
    share: float = 1.0

    @property
    def bytes(self) -> float:
        """On disk: values, scales, and the last block's padding."""
        return self.share * self.matrix.count * matrix_bytes(self.spec, self.matrix.k, self.matrix.n)


@dataclass(frozen=True)
class Offer:
    """One form that a model can be given."""

    name: str
    recipes: tuple[Recipe, ...]
    """One; of a plan the uniform ones it lies between, rising in bytes."""
    options: str
    """Of `aiasst quantize`, that make it; empty where only Python does."""
    bits: float | None = None
    """All-included bits a weight of a plan; None: the recipe's own."""

    def parts(self, shape: ModelShape) -> Iterator[Part]:
        """What the model's products become."""
        for recipe, share in self._mix(shape):
            for matrix in shape.products:
                yield from _layers(recipe, share, matrix)

    def head(self, shape: ModelShape) -> Iterator[Part]:
        """What its head becomes."""
        for recipe, share in self._mix(shape):
            yield Part(shape.head, recipe.format_of("lm_head", None, shape.layers), share)

    def embedding(self, shape: ModelShape) -> Iterator[Part]:
        """What its embedding becomes: nothing of its own where it is the head's."""
        for recipe, share in self._mix(shape):
            for matrix in shape.stored:
                if matrix.role == "embed":
                    yield Part(matrix, recipe.format_of("embed", None, shape.layers), share)

    def disk_bytes(self, shape: ModelShape) -> float:
        """Graph and weights."""
        return self._weight_bytes(shape) + _table_bytes(shape)

    def memory_bytes(self, shape: ModelShape) -> Range:
        """Of the weights while the model runs. An embedding is read where the file lies, row by row."""
        parts = [*self.parts(shape), *self.head(shape)]
        packed = total((_WIDENED if part.spec.format == "fp16" else _PACKED).times(part.bytes) for part in parts)
        looked_up = sum(part.bytes for part in self.embedding(shape))
        return packed + Range(0.0, looked_up, looked_up) + Range.exact(4 * shape.small_parameters + _table_bytes(shape))

    def _weight_bytes(self, shape: ModelShape) -> float:
        """Packed values, scales, zero points and norms: what bits a weight are counted of."""
        parts = [*self.parts(shape), *self.head(shape), *self.embedding(shape)]
        return sum(part.bytes for part in parts) + 4 * shape.small_parameters

    def _mix(self, shape: ModelShape) -> list[tuple[Recipe, float]]:
        """The recipes with the share of the weights each is for: one, or the two whose mean has the bits of the plan."""
        if self.bits is None:
            return [(self.recipes[0], 1.0)]
        uniform = [(Offer(recipe.name, (recipe,), "")._weight_bytes(shape), recipe) for recipe in self.recipes]
        wanted = self.bits * shape.parameters / 8
        for (small, lower), (large, upper) in pairwise(uniform):
            if small <= wanted <= large:
                share = (wanted - small) / (large - small)
                return [(lower, 1 - share), (upper, share)]
        return [(uniform[0 if wanted < uniform[0][0] else -1][1], 1.0)]


def _layers(recipe: Recipe, share: float, matrix: MatrixShape) -> Iterator[Part]:
    formats = [recipe.format_of(matrix.role, layer, matrix.count) for layer in range(matrix.count)]
    for spec in dict.fromkeys(formats):
        yield Part(MatrixShape(matrix.role, matrix.k, matrix.n, formats.count(spec)), spec, share)


def _table_bytes(shape: ModelShape) -> float:
    """The graph, and its tables of rotary cosines and sines: half a head each for every position there may be."""
    return _GRAPH_BYTES * shape.layers + 4 * shape.context_length * shape.head_dim


def matrix_bytes(spec: WeightFormat, k: int, n: int) -> float:
    """Bytes that a matrix [k, n] takes in a format, as the packed parts have it: scales are float32, blocks are whole."""
    if spec.format == "w8a8":
        return k * n + 4 * n
    if spec.format not in BLOCK_FORMATS:
        return k * n * _BITS[spec.format] / 8
    assert spec.block_size is not None
    blocks = -(-k // spec.block_size)
    zero_points = -(-blocks * _BITS[spec.format] // 8) if spec.zero_point else 0
    return n * (blocks * spec.block_size * _BITS[spec.format] / 8 + 4 * blocks + zero_points)


@cache
def offers() -> tuple[Offer, ...]:
    """All there are, the most accurate first (README: accuracy of the story model)."""
    int8, int4, int2 = (load_recipe(name) for name in ("int8", "int4", "int2-experimental"))
    half = Recipe(name="fp16", description="half precision", default=WeightFormat(format="fp16"))
    planned = (int2, int4, int8)
    return (
        Offer("fp16", (half,), ""),
        Offer("int8", (int8,), "--recipe int8"),
        Offer("w8a8", (load_recipe("w8a8"),), "--recipe w8a8"),
        Offer("6 bits", planned, "--target-bpw 6", bits=6.0),
        Offer("int4", (int4,), "--recipe int4"),
        Offer("int4-fast", (load_recipe("int4-fast"),), "--recipe int4-fast"),
        Offer("4 bits", planned, "--target-bpw 4", bits=4.0),
        Offer("int2", (int2,), "--recipe int2-experimental"),
    )
