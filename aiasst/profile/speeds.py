"""How fast a machine is at what a model asks of it, whether that was measured or follows from a specification. Knows no model.

    product       [rows, k] x [k, n] in a weight format
    attending     multiplications of attention, one token at a time or many
    going over    numbers, one by one: norms, activations, residuals
    launching     a node of the graph, a step of the engine, a row of a step

Of a machine that was measured, all of it is. Of a specification, the figures of attention and overhead are ours, measured on
AVX512 cores of 3.2 to 3.7 GHz; all of them go with the clock and the number of cores, and have a wide range.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aiasst.artifacts.cost_table import CostTable
from aiasst.artifacts.device import Costs, Hardware
from aiasst.artifacts.recipe import WeightFormat
from aiasst.profile.fits import LayerLaw, attention_law, layer_law, node_law, step_law
from aiasst.profile.library import CoreKind, DeviceDescription
from aiasst.profile.offers import matrix_bytes
from aiasst.profile.ranges import Range

ProductFn = Callable[[WeightFormat, int, int, int, bool], Range | None]
NodeFn = Callable[[float], Range]

_CLOCK = Range(0.7, 0.85, 1.0)
"""The clock that all cores hold together, by the highest of one."""
_READ_SHARE = Range(0.42, 0.68, 0.88)
"""Of the specified bandwidth, what cores get by reading: boards least, desktops and Apple's most."""
_READ_PER_CYCLE = Range(2.5, 6.0, 16.0)
"""Bytes that one core can have from memory in a cycle: what it may wait for at once, by the latency."""
_OVERLAP = Range(0.1, 0.4, 1.0)
"""The shorter one of reading and multiplying is hidden but for this share."""

# Multiplications by those that the vector units could do, measured with ONNX Runtime 1.31 at 32 rows and more on Zen 4 and Zen 5.
_EFFICIENCY: dict[str, float] = {
    "fp32": 0.80, "fp16": 0.80, "w8a8": 0.70,
    "int8-b256": 0.48, "int8-b128": 0.41, "int8-b64": 0.36, "int8-b32": 0.32,
    "int4-b256": 0.44, "int4-b128": 0.39, "int4-b64": 0.29, "int4-b32": 0.26,
    "int2-b128": 0.39, "int2-b64": 0.26, "int2-b32": 0.20,
}  # fmt: skip
_KERNEL = Range(0.6, 1.0, 1.35)
"""How far kernels for other instruction sets may lie from that."""
# A product costs so many rows more than it has: a few rows do not fill the kernels' tiles.
_EXTRA_ROWS = {"fp32": 4.0, "fp16": 4.0, "w8a8": 4.0, "int8": 1.0, "int4": 0.5, "int2": 0.5}
# Of the float32 rate where nothing multiplies integers (ARM without dotprod): MLAS has float32 kernels for 4 bits alone and byte
# products of its own; other blocks are widened to float32 for every product, whatever its rows (qnbitgemm_kernel_neon.cpp).
_FALLBACK = {
    "int4": Range(0.3, 0.6, 1.0),
    "w8a8": Range(0.4, 1.0, 2.0),
    "int8": Range(0.3, 0.8, 1.0),
    "int2": Range(0.3, 0.8, 1.0),
}
_WIDENING_ROWS = {"int4": 0.5, "w8a8": 4.0, "int8": 40.0, "int2": 40.0}
_AMX = Range(2.0, 3.0, 4.0)
"""W8A8 on tiles of AMX, by AVX512-VNNI (the only format with an AMX kernel)."""

_ATTENDING_PER_CYCLE = Range(1.5, 2.5, 4.5)
"""Of one core, for a single new token: 8.8 milliards a second at 3.7 GHz, whatever the number of heads."""
_ATTENDING_MANY = Range(0.2, 0.35, 0.6)
"""Of the float32 rate, for a prompt, where half of the square is masked."""
_GOING_OVER_PER_CYCLE = Range(0.15, 0.35, 0.8)
"""Numbers, of one core."""
NORM_PASSES = 3
"""Times that a norm goes over the numbers of its rows: the residual is added, squares are summed, all are scaled."""
_NODE_CYCLES = Range(1500.0, 3300.0, 12000.0)
_PRODUCT_CYCLES = Range(200.0, 600.0, 2500.0)
"""For each thread of a product: handing out the work, and waiting for the last."""
_STEP_CYCLES = Range(1e5, 2e5, 1e6)
_ROW_CYCLES = Range(4e4, 1.1e5, 3e5)
"""The story model on one core of Zen 4: 0.9 µs a node, 55 µs a step, 30 µs a row."""
_REFERENCE_CLOCK = 3.5
"""Gigahertz that a machine is taken to have of which only measurements are known."""
_REFERENCE_FLOAT = 16.0

_NO_INTEGERS = (
    "its cores have no dot product of bytes: 4 bits are multiplied as float32, 8 and 2 bits are widened every time"
)

_SEEN = Range(0.85, 1.0, 1.2)
"""What measured attention and overheads may take in a model."""
_MEASURED = Range(0.92, 1.0, 1.12)
"""What a measured product may take in a model, beside its own noise."""


@dataclass(frozen=True)
class Attending:
    """What attention costs with keys and values in the cache; seconds."""

    rate: Range
    """Multiplications a second."""
    node: Range = Range.exact(0.0)  # noqa: RUF009 - frozen
    """Whatever is attended to."""
    head: Range = Range.exact(0.0)  # noqa: RUF009 - frozen
    """For each head of each new token."""

    def seconds(self, nodes: float, heads: float, multiplications: float) -> Range:
        """Of so much of each."""
        return self.node.times(nodes) + self.head.times(heads) + self.rate.under(multiplications)


@dataclass(frozen=True)
class Speeds:
    """A machine, ready to be asked. Rates are a second's, times are in seconds."""

    measured: bool
    product: ProductFn
    """(format, rows, k, n, whether the whole model lies in the cache) → seconds; None: nothing is known of the format."""
    read: Range
    """Bytes that are read from memory."""
    attend_one: Attending
    attend_many: Attending
    """For one token of a sequence, and for many."""
    node: NodeFn
    """Numbers that a norm goes over → seconds; of nothing, the launch of a node. Other small nodes pass over theirs fewer times."""
    launched: bool
    """Whether products and attention cost what they do with the launch of their nodes."""
    step: Range
    row: Range
    score: Range
    """Of the engine: a step, a row of it, and each score that a token of the row is chosen from."""
    cache_bytes: int
    """Last-level cache."""
    layer_from_memory: LayerLaw | None = None
    layer_from_cache: LayerLaw | None = None
    """What `fits.LAYER` takes as a whole, by where its weights are; None: not measured."""
    note: str = ""
    """What a reader should know of these figures."""


def described(description: DeviceDescription, threads: int) -> Speeds:
    """What follows from a specification, with `threads` cores of the kind that products run on."""
    cores = description.working
    cycles = _CLOCK.times(cores.gigahertz * 1e9)
    together = cycles.times(threads)
    by_memory = _READ_SHARE.times(description.memory.gigabytes_per_second * 1e9)
    by_cores = together.by(_READ_PER_CYCLE)
    read = Range(*(min(pair) for pair in zip(_three(by_memory), _three(by_cores), strict=True)))
    rates = _Rates(cores, frozenset(description.instruction_sets), together)
    missing = rates.integers is None
    handing_out = _seconds(_PRODUCT_CYCLES, cycles).times(threads)
    return Speeds(
        measured=False,
        product=_by_rates(rates, read, handing_out),
        read=read,
        attend_one=Attending(together.by(_ATTENDING_PER_CYCLE)),
        attend_many=Attending(rates.floats.by(_ATTENDING_MANY)),
        node=_node_by_rate(_seconds(_NODE_CYCLES, cycles), together.by(_GOING_OVER_PER_CYCLE)),
        launched=False,
        step=_seconds(_STEP_CYCLES, cycles),
        row=_seconds(_ROW_CYCLES, cycles),
        score=together.by(_GOING_OVER_PER_CYCLE).under(1),
        cache_bytes=description.last_level_cache_bytes,
        note=_NO_INTEGERS if missing else "",
    )


def measured(hardware: Hardware, costs: Costs) -> Speeds:
    """What was measured on a machine.

    Raises:
        ArtifactError: nothing was.
    """
    table = CostTable.of(costs)
    noise = sorted(point.noise for point in costs.matmul)[len(costs.matmul) // 2]
    spread = Range(_MEASURED.low, 1.0, _MEASURED.high + noise)
    read = max((point.gigabytes_per_second for point in costs.bandwidth), default=0.0) * 1e9
    cycles = Range.exact(_REFERENCE_CLOCK * 1e9)
    together = cycles.times(max((point.threads for point in costs.matmul), default=1))
    cache_bytes = max((cache.bytes for cache in hardware.caches if cache.kind != "instruction"), default=0)
    floats = [p.gigamacs_per_second for p in costs.matmul if p.format == "fp32"]
    float_rate = max(floats) * 1e9 if floats else _REFERENCE_FLOAT * together.value
    one = _attending(costs, cache_bytes, decoding=True)
    many = _attending(costs, cache_bytes, decoding=False)
    node, step = node_law(costs.overheads), step_law(costs.overheads)
    go_over = together.by(_GOING_OVER_PER_CYCLE)
    return Speeds(
        measured=True,
        product=_by_table(table, spread),
        read=Range(0.9 * read, read, 1.05 * read) if read else together.by(_READ_PER_CYCLE),
        attend_one=one or Attending(together.by(_ATTENDING_PER_CYCLE)),
        attend_many=many or Attending(_ATTENDING_MANY.times(float_rate)),
        node=_node_by_rate(_seconds(_NODE_CYCLES, cycles), go_over) if node is None else _seen_node(node),
        launched=node is not None,
        step=_seconds(_STEP_CYCLES, cycles) if step is None else _SEEN.times(step.step),
        row=_seconds(_ROW_CYCLES, cycles) if step is None else _SEEN.times(step.row),
        score=go_over.under(1) if step is None else _SEEN.times(step.score),
        cache_bytes=cache_bytes,
        layer_from_memory=layer_law(costs.overheads, cached=False),
        layer_from_cache=layer_law(costs.overheads, cached=True),
    )


def _attending(costs: Costs, cache_bytes: int, *, decoding: bool) -> Attending | None:
    """What was measured of attention; None where nothing was, or no length made a difference."""
    law = attention_law(costs, cache_bytes, decoding=decoding)
    if law is None or not law.multiplication:
        return None
    return Attending(_SEEN.times(1 / law.multiplication), _SEEN.times(law.node), _SEEN.times(law.head))


def _node_by_rate(launch: Range, rate: Range) -> NodeFn:
    return lambda numbers: launch + rate.under(NORM_PASSES * numbers)


def _seen_node(law: Callable[[float], float]) -> NodeFn:
    return lambda numbers: _SEEN.times(law(numbers))


class _Rates:
    """Multiplications a second of all cores together, by the width of their vectors."""

    def __init__(self, cores: CoreKind, instructions: frozenset[str], cycles: Range) -> None:
        lanes = cores.vector_bits * cores.vector_units
        self.floats = cycles.times(lanes / 32).by(_KERNEL).times(_EFFICIENCY["fp32"])
        self.integers: Range | None = cycles.times(lanes / 8).by(_KERNEL)
        self.wide = "i8mm" in instructions
        self.amx = "amx_int8" in instructions
        if not instructions & {"avx_vnni", "avx512_vnni", "dotprod"}:
            # AVX2 multiplies bytes in three instructions (vpmaddubsw, vpmaddwd, vpaddd) where VNNI has one.
            self.integers = self.integers.times(0.45) if "avx2" in instructions else None

    def of(self, spec: WeightFormat, rows: int) -> Range:
        """The rate at which a format is multiplied, many rows at once."""
        if spec.format in ("fp32", "fp16"):
            return self.floats
        if self.integers is None:
            return self.floats.by(_FALLBACK[spec.format])
        rate = self.integers.times(_EFFICIENCY[spec.label.removesuffix("-zp")])
        if self.wide and rows > 1:
            rate = rate.by(Range(1.0, 1.5, 2.0))
        return rate.by(_AMX) if self.amx and spec.format == "w8a8" and rows > 1 else rate

    def extra_rows(self, spec: WeightFormat) -> float:
        """Rows that a product costs beyond its own."""
        falls_back = self.integers is None and spec.format in _WIDENING_ROWS
        return _WIDENING_ROWS[spec.format] if falls_back else _EXTRA_ROWS[spec.format]


def _by_rates(rates: _Rates, read: Range, handing_out: Range) -> ProductFn:
    def product(spec: WeightFormat, rows: int, k: int, n: int, cached: bool) -> Range:
        multiplying = rates.of(spec, rows).under(k * n * (rows + rates.extra_rows(spec)))
        # Floats are widened once and for all when the model is loaded.
        stored = WeightFormat(format="fp32") if spec.format == "fp16" else spec
        working = multiplying if cached else _together(multiplying, read.under(matrix_bytes(stored, k, n)))
        return working + handing_out

    return product


def _together(first: Range, second: Range) -> Range:
    """Seconds of two things that the machine partly does at once."""

    def of(a: float, b: float, share: float) -> float:
        return max(a, b) + share * min(a, b)

    return Range(*map(of, _three(first), _three(second), _three(_OVERLAP)))


def _by_table(table: CostTable, spread: Range) -> ProductFn:
    def product(spec: WeightFormat, rows: int, k: int, n: int, cached: bool) -> Range | None:
        seconds = table.microseconds(spec, rows, k, n, cached=cached) / 1e6
        if seconds == float("inf"):
            return None
        found = spread.times(seconds)
        if not cached or table.knows_resident:
            return found
        # Weights were read from memory while this was measured; many rows tell what multiplying alone takes.
        many = 128
        multiplying = table.microseconds(spec, many, k, n) / 1e6 / many * (rows + _EXTRA_ROWS[spec.format])
        fast = min(seconds, multiplying)
        return Range(spread.low * fast, fast, max(found.high, fast))

    return product


def _seconds(cycles: Range, clock: Range) -> Range:
    return Range(cycles.low / clock.high, cycles.value / clock.value, cycles.high / clock.low)


def _three(found: Range) -> tuple[float, float, float]:
    return found.low, found.value, found.high
