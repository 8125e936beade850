"""The forms that a model has or that `aiasst quantize` can give it: bytes on disk, in memory, read for a token. Knows no machine.

An offer is a recipe that comes with the program, or a plan of so many bits a weight: what that becomes is only known once it is
planned, so it is taken for a mixture of the two uniform recipes around it, and the true one lies near.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from aiasst.artifacts.model_folder import Manifest
from aiasst.artifacts.recipe import BLOCK_FORMATS, FLOAT_ROLES, Recipe, WeightFormat, load_recipe
from aiasst.engine.cache import WEIGHTS_IN_MEMORY
from aiasst.errors import UnsupportedModelError
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
class Form:
    """A model in certain formats: what is read for a token, and what is stored."""

    name: str
    options: str
    """Of `aiasst quantize`, that make it; empty where only Python does, or where it is made already."""
    layers: tuple[Part, ...]
    """Products that each token goes through."""
    head: tuple[Part, ...]
    """That each answered token goes through."""
    embedding: tuple[Part, ...]
    """Looked up; nothing of its own where it is the head's."""
    small_bytes: float
    """Norms, tables of rotary cosines and sines, and the graph."""

    @property
    def disk_bytes(self) -> float:
        """Graph and weights."""
        return sum(part.bytes for part in (*self.layers, *self.head, *self.embedding)) + self.small_bytes

    @property
    def read_bytes(self) -> float:
        """Of weights, for one decode step."""
        return sum(part.bytes for part in (*self.layers, *self.head))

    @property
    def memory_bytes(self) -> Range:
        """Of the weights while the model runs. An embedding is read where the file lies, row by row."""
        packed = total(
            (_WIDENED if part.spec.format == "fp16" else _PACKED).times(part.bytes)
            for part in (*self.layers, *self.head)
        )
        looked_up = sum(part.bytes for part in self.embedding)
        return packed + Range(0.0, looked_up, looked_up) + Range.exact(self.small_bytes)


@dataclass(frozen=True)
class Offer:
    """One form that any model can be given."""

    name: str
    recipes: tuple[Recipe, ...]
    """One; of a plan the uniform ones it lies between, rising in bytes."""
    options: str
    bits: float | None = None
    """All-included bits a weight of a plan; None: the recipe's own."""

    def form(self, shape: ModelShape) -> Form:
        """What a model of this shape becomes."""
        layers: list[Part] = []
        head: list[Part] = []
        embedding: list[Part] = []
        for recipe, share in self._mix(shape):
            for matrix in shape.stored:
                once = (Part(matrix, recipe.format_of(matrix.role, None, shape.layers).fitting(matrix.k), share),)
                if matrix.role == "embed":
                    embedding += once
                elif matrix.role == "lm_head":
                    head += once
                else:
                    layers += _layers(recipe, share, matrix)
        return Form(self.name, self.options, tuple(layers), tuple(head), tuple(embedding), _small_bytes(shape))

    def _mix(self, shape: ModelShape) -> list[tuple[Recipe, float]]:
        """The recipes with the share of the weights each is for: one, or the two whose mean has the bits of the plan."""
        if self.bits is None:
            return [(self.recipes[0], 1.0)]
        forms = [(Offer(recipe.name, (recipe,), "").form(shape), recipe) for recipe in self.recipes]
        uniform = [(form.disk_bytes - form.small_bytes, recipe) for form, recipe in forms]
        wanted = self.bits * shape.parameters / 8 - 4 * shape.small_parameters
        for (small, lower), (large, upper) in pairwise(uniform):
            if small <= wanted <= large:
                share = (wanted - small) / (large - small)
                return [(lower, 1 - share), (upper, share)]
        return [(uniform[0 if wanted < uniform[0][0] else -1][1], 1.0)]


def form_of(manifest: Manifest, shape: ModelShape) -> Form:
    """The form that a model folder has already, by its table of weights."""
    layers: list[Part] = []
    head: list[Part] = []
    embedding: list[Part] = []
    shared = {weight.shared_with for weight in manifest.weights.values()}
    for name, weight in manifest.weights.items():
        if len(weight.shape) != 2 or weight.role in FLOAT_ROLES:
            continue
        spec, (k, n) = _spec_of(weight.format), weight.shape
        if weight.layer is not None:
            layers.append(Part(MatrixShape(weight.role, k, n, 1), spec))
        elif weight.role != "embed":
            head.append(Part(MatrixShape(weight.role, k, n, 1), spec))
        elif name not in shared and weight.shared_with is None:
            # [vocabulary, hidden]: blocks run along hidden, as in the head.
            embedding.append(Part(MatrixShape("embed", n, k, 1), spec))
    name = manifest.quantization.recipe if manifest.quantization else "fp32"
    return Form(name, "", tuple(layers), tuple(head), tuple(embedding), _small_bytes(shape))


def shape_of_folder(manifest: Manifest) -> ModelShape:
    """The shape of a converted decoder, by its manifest.

    Raises:
        UnsupportedModelError: it is no decoder.
    """
    known = manifest.shape
    down = [weight.shape[0] for weight in manifest.weights.values() if weight.role == "down"]
    if known is None or manifest.task != "text-generation" or not down:
        raise UnsupportedModelError(
            f"a model for {manifest.task} is not predicted: advice is about generating text",
            "measure it: aiasst eval DIR",
        )
    roles = {weight.role for weight in manifest.weights.values()}
    return ModelShape(
        model_type=known.model_type,
        layers=known.layers,
        hidden_size=known.hidden_size,
        intermediate_size=max(down),
        vocab_size=known.vocab_size,
        heads=known.heads,
        kv_heads=known.kv_heads,
        head_dim=known.head_dim,
        context_length=known.context_length,
        tied_embedding=any(w.role == "lm_head" and w.shared_with for w in manifest.weights.values()),
        gated=bool(roles & {"gate_up", "gate"}),
    )


def _spec_of(label: str) -> WeightFormat:
    """The format of a weight table's label: int4-b128, int4-b128-zp, w8a8."""
    name, *options = label.split("-")
    blocks = [int(option[1:]) for option in options if option.startswith("b")]
    data = {"format": name, "block_size": blocks[0] if blocks else None, "zero_point": "zp" in options}
    return WeightFormat.parse(data, f"weight format '{label}'")


def _layers(recipe: Recipe, share: float, matrix: MatrixShape) -> Iterator[Part]:
    formats = [recipe.format_of(matrix.role, layer, matrix.count).fitting(matrix.k) for layer in range(matrix.count)]
    for spec in dict.fromkeys(formats):
        yield Part(MatrixShape(matrix.role, matrix.k, matrix.n, formats.count(spec)), spec, share)


def _small_bytes(shape: ModelShape) -> float:
    """Norms, the graph, and its tables of rotary cosines and sines: half a head each for every position there may be."""
    return 4 * shape.small_parameters + _GRAPH_BYTES * shape.layers + 4 * shape.context_length * shape.head_dim


def matrix_bytes(spec: WeightFormat, k: int, n: int) -> float:
    """Bytes that a matrix [k, n] takes in a format, as the packed parts have it: scales are float32, blocks are whole."""
    if spec.format == "w8a8":
        return k * n + 4 * n
    if spec.format not in BLOCK_FORMATS:
        return k * n * _BITS[spec.format] / 8
    assert spec.block_size is not None
    blocks = spec.padded(k) // spec.block_size
    zero_points = -(-blocks * _BITS[spec.format] // 8) if spec.zero_point else 0
    return n * (spec.padded(k) * _BITS[spec.format] / 8 + 4 * blocks + zero_points)


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
