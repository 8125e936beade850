"""A device config in sentences: what each decision is, why, and which measured figures stand behind it. Decides nothing."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from aiasst.artifacts.cost_table import usual_products
from aiasst.artifacts.device import Costs, DeviceConfig, Hardware, MatmulPoint
from aiasst.sizes import human_bytes

_NOISY = 0.25
"""Of a measurement: no other visit came nearer to the best than by this share."""


def explain(config: DeviceConfig) -> list[tuple[str, str]]:
    """(What is explained, sentences about it), in the order of the file."""
    decisions, hardware = config.decisions, config.hardware
    pinned = decisions.affinity.value
    return [
        ("machine", _machine(hardware)),
        ("measured", _measured(config.costs)),
        ("provider", f"Models run on the provider {decisions.provider.value}: {decisions.provider.reason}."),
        ("threads", f"Products are shared by {_count(decisions.threads.value, 'thread')}: {decisions.threads.reason}."
                    + _threads_seen(config.costs)),
        ("affinity", ("Threads are not pinned: " if pinned is None else f"Threads are pinned to cores {_list(pinned)}: ")
                     + f"{decisions.affinity.reason}."),
        ("slots", f"{_count(decisions.slots.value, 'sequence')} at once: {decisions.slots.reason}."
                  + _rows_seen(config.costs)),
        ("memory ceiling", f"Weights and cache together take at most {human_bytes(decisions.memory_ceiling_bytes.value)}: "
                           f"{decisions.memory_ceiling_bytes.reason}."),
        ("spinning", ("Threads wait awake between products" if decisions.spinning.value else "Threads sleep between products")
                     + f": {decisions.spinning.reason}."),
        ("chunk", f"Prompts are read {_count(decisions.chunk.value, 'token')} at a time at most ({decisions.chunk.reason})."),
        ("formats", _formats(config.costs)),
        ("cache", _cache(config.costs)),
    ]  # fmt: skip


def _machine(hardware: Hardware) -> str:
    words = f"{hardware.cpu_model}, {_count(hardware.physical_cores, 'physical core')}"
    if hardware.logical_cores > hardware.physical_cores:
        words += f" with {hardware.logical_cores} hardware threads"
    words += f", of which this program may use {hardware.usable_cores:g}; {human_bytes(hardware.memory_total_bytes)} of memory"
    words += f", {human_bytes(hardware.memory_free_bytes)} of it free."
    integers = {"avx512_vnni", "avx_vnni", "dotprod", "i8mm", "amx_int8"} & set(hardware.instruction_sets)
    if integers:
        return (
            words
            + f" It multiplies bytes in one instruction ({', '.join(sorted(integers))}), which small weights live on."
        )
    return (
        words
        + " It has no instruction that multiplies bytes and adds them up, so small weights save memory more than time."
    )


def _measured(costs: Costs) -> str:
    if not costs.bandwidth and not costs.matmul:
        return (
            "Nothing was measured: the decisions follow from what the system tells, and predictions need measurements."
        )
    noises = [point.noise for point in costs.bandwidth] + [point.noise for point in costs.matmul]
    noisy = [noise for noise in noises if noise > _NOISY]
    words = f"{len(noises)} figures, each the best of repeats at several times."
    if noisy:
        words += (
            f" {len(noisy)} of them are uncertain, for at other times they came out more than {_NOISY:.0%} slower (the worst "
            f"by {max(noisy):.0%}): something else ran here. Measure again on a quiet machine before relying on them."
        )
    return words


def _threads_seen(costs: Costs) -> str:
    if len(costs.bandwidth) < 2:
        return ""
    seen = ", ".join(f"{p.gigabytes_per_second:.1f} GB/s with {p.threads}" for p in costs.bandwidth)
    return f" Decoding reads every weight for every step, and memory was read at {seen}."


def _rows_seen(costs: Costs) -> str:
    points = _of_format(costs, "int4-b128")
    if len(points) < 2:
        return ""
    seen = ", ".join(f"{p.microseconds:.0f} µs with {_count(p.rows, 'row')}" for p in points)
    return f" A product of {points[0].k} by {points[0].n} in int4-b128 took {seen}: weights are read once for all rows."


def _formats(costs: Costs) -> str:
    if not costs.matmul:
        return "Which format is fastest was not measured."
    products = usual_products(costs)
    by_rows = [[point for point in products if point.rows == rows] for rows in sorted({p.rows for p in products})]
    groups = itertools.groupby(by_rows, key=lambda at: min(at, key=_time).format)
    return (
        "The fastest format here is "
        + ", ".join(_fastest(name, list(group)) for name, group in groups)
        + ". One row is one answer being written; 128 rows are a prompt "
        "being read. `aiasst quantize --device` plans with these figures."
    )


def _fastest(name: str, group: Sequence[Sequence[MatmulPoint]]) -> str:
    """Of some numbers of rows, at each of which format `name` is the fastest."""
    best, worst = ([pick(at, key=_time) for at in group] for pick in (min, max))
    rows, times = [point.rows for point in best], [point.microseconds for point in best]
    most = max(zip(worst, times, strict=True), key=lambda pair: pair[0].microseconds / pair[1])
    numbers = _count(rows[0], "row") if len(rows) == 1 else f"{rows[0]} to {rows[-1]} rows"
    took = f"{times[0]:.0f} µs" if len(rows) == 1 else f"{times[0]:.0f} to {times[-1]:.0f} µs"
    return f"with {numbers} {name} ({took}; {most[0].format} takes up to {most[0].microseconds / most[1]:.1f} times as long)"


def _time(point: MatmulPoint) -> float:
    return point.microseconds


def _cache(costs: Costs) -> str:
    """Advice on an int8 cache, by the longest past that was measured with both."""
    quiet = [point for point in costs.attention if point.noise <= _NOISY]
    heads = max((point.heads for point in quiet), default=0)
    seen = {(p.rows, p.new_tokens, p.past, p.cache): p.microseconds for p in quiet if p.heads == heads}
    both = [key[:3] for key in seen if key[1] == 1 and key[3] == "int8" and (*key[:3], "float32") in seen]
    if not both:
        return (
            "What an int8 cache would cost was not measured; it takes a quarter of the memory (quantize --cache int8)."
        )
    rows, _, past = longest = max(both, key=lambda key: key[0] * key[2])
    ratio = seen[(*longest, "int8")] / seen[(*longest, "float32")]
    return (
        f"An int8 cache takes a quarter of the memory (quantize --cache int8); attention with {_count(rows, 'sequence')} of "
        f"{past} tokens takes {ratio:.1f} times as long with it as with float32 here."
    )


def _of_format(costs: Costs, label: str) -> list[MatmulPoint]:
    return [point for point in usual_products(costs) if point.format == label]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _list(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))
