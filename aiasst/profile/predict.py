"""What a model would take on a machine before it is there: seconds of a step and of a prompt, bytes in memory. Pure.

    a decode step   every product with as many rows as there are sequences · attention over what each has in the cache, which
                    has to be read unless it stays in the processor's · small nodes (norms, activations, residuals) · the engine
                    · what a layer was measured to take beyond its parts
    a prompt        the same in pieces, the head for the last token only, attention over the square
    memory          packed weights · cache of the whole context · logits and activations · the program

Knows no configuration file and prints nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from aiasst.artifacts.recipe import WeightFormat
from aiasst.engine.engine import CHUNK
from aiasst.profile.fits import LAYER, LAYER_FORMAT, LAYER_PAST
from aiasst.profile.offers import Form, Part
from aiasst.profile.ranges import Range, total
from aiasst.profile.shapes import ModelShape
from aiasst.profile.speeds import NORM_PASSES, Attending, Speeds

SEQUENCES = (1, 8)
"""Numbers of sequences that are predicted."""
USUAL_PROMPT = 512
"""Tokens of a prompt, where the context is long enough for one."""
SHORT_PAST = 64
"""Tokens behind each sequence that decodes: as `aiasst bench` measures it, and as a short conversation has it."""
_PROGRAM_BYTES = Range(130e6, 180e6, 300e6)
"""Python, ONNX Runtime and the tokenizer."""
_LAYER_NODES = 14
_W8A8_NODES = 9
"""More, for each product: the rows are scaled by stock operators."""
_FEW_NODES = 12
"""Before and after the layers. All three where launching was not measured with products and attention."""
_OUTER_NODES = 20
"""Before and after the layers, most of them on a few numbers."""
_NORMS = 2
"""Of a layer."""
_NOTHING = Range.exact(0.0)
_LEAST_SHARE = 0.2
"""Of what the parts take, whatever a whole layer was measured to take."""
_CACHED_SHARE = 0.7
"""A model that takes no more than this of the last-level cache stays in it."""


@dataclass(frozen=True)
class Workload:
    """What is predicted for."""

    context: int
    """Tokens that prompt and answer have room for in each sequence."""
    prompt: int

    @classmethod
    def within(cls, context: int, shape: ModelShape) -> Workload:
        """A usual prompt in a context of at most `context` tokens."""
        room = min(context, shape.context_length)
        return cls(room, max(1, min(USUAL_PROMPT, room // 2)))


@dataclass(frozen=True)
class Prediction:
    """One form of a model on one machine."""

    form: Form
    resident: Range
    """Bytes, with one sequence of the whole context."""
    cache_bytes: int
    """Of that one sequence."""
    ceiling_bytes: int | None
    """That it has to stay under; None: no limit is known."""
    prefill: Range
    """Seconds for the prompt."""
    steps: tuple[tuple[int, Range], ...]
    """(Sequences, seconds of a decode step with a short past)."""
    full_steps: tuple[tuple[int, Range], ...]
    """The same at the end of the context."""
    workload: Workload

    @property
    def fits(self) -> bool:
        """Whether it stays under the ceiling, as far as can be told."""
        return self._fits(self.resident.value)

    @property
    def surely_fits(self) -> bool:
        """Whether it does even where memory turns out dearest."""
        return self._fits(self.resident.high)

    @property
    def may_fit(self) -> bool:
        """Whether it does where memory turns out cheapest."""
        return self._fits(self.resident.low)

    @property
    def prefill_rate(self) -> Range:
        """Tokens of a prompt a second."""
        return self.prefill.under(self.workload.prompt)

    @property
    def first_token(self) -> Range:
        """Seconds to the first token (TTFT) of the prompt."""
        return self.prefill

    def decode_rate(self, sequences: int) -> Range:
        """Tokens a second of all `sequences` together, with a short past."""
        return dict(self.steps)[sequences].under(sequences)

    def full_rate(self, sequences: int) -> Range:
        """The same at the end of the context, where attention has most to do."""
        return dict(self.full_steps)[sequences].under(sequences)

    def _fits(self, resident: float) -> bool:
        return self.ceiling_bytes is None or resident <= self.ceiling_bytes


def predict(
    shape: ModelShape, form: Form, workload: Workload, speeds: Speeds, ceiling_bytes: int | None
) -> Prediction | None:
    """What `shape` in this form would take; None where the machine's costs do not know one of its formats."""
    asked = _Asked(shape, form, speeds)
    prefill = asked.prompt(workload.prompt)
    short, full = asked.steps(min(SHORT_PAST, workload.context)), asked.steps(workload.context)
    if prefill is None or short is None or full is None:
        return None
    return Prediction(
        form=form,
        resident=resident_bytes(shape, form, workload),
        cache_bytes=workload.context * shape.cache_bytes_per_token,
        ceiling_bytes=ceiling_bytes,
        prefill=prefill,
        steps=short,
        full_steps=full,
        workload=workload,
    )


def step_range(shape: ModelShape, form: Form, speeds: Speeds, sequences: int, past: float) -> Range | None:
    """Seconds of a decode step in which each sequence has `past` tokens behind it; None: a format's cost is not known."""
    return _Asked(shape, form, speeds).step(sequences, past)


def beside_products(
    shape: ModelShape, form: Form, speeds: Speeds, sequences: int, prompt: int, answer: int
) -> tuple[float, bool] | None:
    """Seconds a token that formats do not change, and whether weights as many as in `form` stay in the processor's cache.

    A token takes a decode step half way through the answers, and its share of the prompts that are read meanwhile. None: the cost
    of a format of `form` is not known.
    """
    asked = _Asked(shape, form, speeds)
    step = asked.step(sequences, prompt + answer / 2)
    products = asked.products(sequences)
    reading, of_prompt = (asked.prompt(prompt), asked.prompt_products(prompt)) if prompt else (_NOTHING, _NOTHING)
    if step is None or products is None or reading is None or of_prompt is None:
        return None
    beside = step.value - products.value + sequences * (reading.value - of_prompt.value) / answer
    return beside, asked.cached


def resident_bytes(shape: ModelShape, form: Form, workload: Workload) -> Range:
    """Memory of the whole process with one sequence of the whole context."""
    cache = workload.context * shape.cache_bytes_per_token
    rows = min(CHUNK, workload.context)
    # Several activations of one layer are alive at once, and the logits of a row.
    working = 4 * (rows * (2 * shape.intermediate_size + 4 * shape.hidden_size) + shape.vocab_size)
    return total(
        (
            form.memory_bytes,
            Range(0.25 * cache, cache, cache),
            Range(working, 1.5 * working, 3 * working),
            _PROGRAM_BYTES,
        )
    )


class _Asked:
    """One model in one form, asked of one machine."""

    def __init__(self, shape: ModelShape, form: Form, speeds: Speeds) -> None:
        self.shape, self.speeds = shape, speeds
        self.layers, self.head = form.layers, form.head
        self.weights = form.read_bytes
        self.cached = self.weights <= _CACHED_SHARE * speeds.cache_bytes
        scaled = sum(part.matrix.count * part.share for part in self.layers if part.spec.format == "w8a8")
        self.nodes = _FEW_NODES + _LAYER_NODES * shape.layers + _W8A8_NODES * scaled
        if speeds.launched:
            self.nodes = _OUTER_NODES + (_NORMS + _activations(shape)) * shape.layers

    def steps(self, past: float) -> tuple[tuple[int, Range], ...] | None:
        """(Sequences, seconds) of the numbers of sequences that are predicted."""
        found = [(count, self.step(count, past)) for count in SEQUENCES]
        known = tuple((count, seconds) for count, seconds in found if seconds is not None)
        return known if len(known) == len(found) else None

    def step(self, sequences: int, past: float) -> Range | None:
        """Seconds of a decode step in which each sequence has `past` tokens behind it."""
        products = self.products(sequences)
        if products is None:
            return None
        attention = self._attention(self.speeds.attend_one, sequences, sequences * self.shape.attended(past))
        cache = sequences * past * self.shape.cache_bytes_per_token
        stays = self.weights + cache <= _CACHED_SHARE * self.speeds.cache_bytes
        reading = self.speeds.read.under(0.0 if stays else cache)
        parts = total((products, attention, reading, self._rest(sequences), self._chosen(sequences)))
        of_layers = self._products(self.layers, sequences) or products
        layer = (of_layers.value + attention.value) / self.shape.layers
        beyond = self.shape.layers * beyond_the_parts(self.speeds, sequences, layer, cached=self.cached)
        return parts.times(max(_LEAST_SHARE, 1 + beyond / parts.value))

    def prompt(self, tokens: int) -> Range | None:
        """Seconds to read a prompt of `tokens`, in the engine's pieces."""
        products = self.prompt_products(tokens)
        if products is None:
            return None
        seconds = [products]
        for start in range(0, tokens, CHUNK):
            rows = min(CHUNK, tokens - start)
            attended = rows * self.shape.attended(start + rows / 2)
            seconds += [self._attention(self.speeds.attend_many, rows, attended), self._rest(rows)]
        return total((*seconds, self._chosen(1)))

    def products(self, rows: int) -> Range | None:
        """Those of a decode step."""
        return self._products((*self.layers, *self.head), rows)

    def prompt_products(self, tokens: int) -> Range | None:
        """Those of a prompt: of each piece of it the head is multiplied for the last token only."""
        found = []
        for start in range(0, tokens, CHUNK):
            layers, head = self._products(self.layers, min(CHUNK, tokens - start)), self._products(self.head, 1)
            if layers is None or head is None:
                return None
            found += [layers, head]
        return total(found)

    def _products(self, parts: Iterable[Part], rows: int) -> Range | None:
        found = []
        for part in parts:
            # What blocks are filled up with is multiplied like any weight.
            one = self.speeds.product(part.spec, rows, part.spec.padded(part.matrix.k), part.matrix.n, self.cached)
            if one is None:
                return None
            found.append(one.times(part.matrix.count * part.share))
        return total(found)

    def _attention(self, attending: Attending, tokens: int, multiplications: float) -> Range:
        """Of all layers, for so many new tokens."""
        return attending.seconds(self.shape.layers, self.shape.layers * tokens * self.shape.heads, multiplications)

    def _chosen(self, rows: int) -> Range:
        """A token chosen for each row, out of a score for every token there is."""
        return self.speeds.row.times(rows) + self.speeds.score.times(rows * self.shape.vocab_size)

    def _rest(self, rows: int) -> Range:
        """Small nodes, and the step itself."""
        layers = self.shape.layers
        others = self.nodes - layers * (_NORMS + _activations(self.shape))
        small = _small_nodes(self.shape, self.speeds, rows).times(layers)
        return total((small, self.speeds.node(0.0).times(others), self.speeds.step))


def beyond_the_parts(speeds: Speeds, rows: int, layer: float, *, cached: bool) -> float:
    """Seconds that a layer takes with so many rows beyond what its parts were measured to take each by itself; 0: not measured.

    Nodes that follow each other in a model find neither their code nor their numbers in the nearest caches: that costs as much in
    layers of any size. Less than nothing means that the parts were measured too slow, which is a share of them.

    Args:
        speeds: of the machine.
        rows: of products.
        layer: seconds that products and attention of one layer take by their parts.
        cached: whether the weights lie in the processor's cache.
    """
    law = speeds.layer_from_cache if cached else speeds.layer_from_memory
    spec = WeightFormat.parse({"format": "int4", "block_size": 128}, LAYER_FORMAT)
    products = [speeds.product(spec, rows, one.k, one.n, cached) for one in LAYER.products]
    known = [product for product in products if product is not None]
    if law is None or len(known) < len(products):
        return 0.0
    attention = speeds.attend_one.seconds(1, rows * LAYER.heads, rows * LAYER.attended(LAYER_PAST))
    reading = speeds.read.under(0.0 if cached else rows * LAYER_PAST * LAYER.cache_bytes_per_token)
    parts = total((*known, attention))
    beyond = law.seconds(rows) - (parts + reading + _small_nodes(LAYER, speeds, rows)).value
    return beyond if beyond > 0 else beyond * min(1.0, layer / parts.value)


def _small_nodes(shape: ModelShape, speeds: Speeds, rows: int) -> Range:
    """Norms and activations of a layer."""
    count = _activations(shape)
    activation = speeds.node(rows * shape.activated / (count * NORM_PASSES))
    return speeds.node(rows * shape.hidden_size).times(_NORMS) + activation.times(count)


def _activations(shape: ModelShape) -> int:
    """Nodes between the products of a layer's second half: splitting, the activation, the gate."""
    return 3 if shape.gated else 1
