"""Hardware and costs → what to do, each value with its reason in words. Pure: asks no machine and reads no file."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from aiasst.artifacts.cost_table import usual_products
from aiasst.artifacts.device import (
    CoreGroup,
    CoresDecision,
    Costs,
    CountDecision,
    Decisions,
    Hardware,
    MatmulPoint,
    NumaNode,
    TextDecision,
    TwinDecision,
)
from aiasst.engine.cache import WEIGHTS_IN_MEMORY
from aiasst.sizes import human_bytes

_MEMORY_SHARE = 0.8
"""Of the free memory: what is left serves the system, this program's own few hundred megabytes, and a file cache."""
_LOSES = 0.9
"""More threads lose when they read less than this share of what the best number of threads reads."""
_PAYS = 1.5
"""More sequences at once pay when the tokens a second of all together grow by this factor: each of them becomes slower."""
_MOST_SLOTS = 32
_USUAL_TOKENS = 4096
"""Prompt and answer that a slot is given memory for, where the model's context is longer."""
_USUAL_FORMAT = "int4-b128"
_TWIN_FORMAT = "w8a8"
_USUAL_CROSSOVER = 12
"""Rows from which w8a8 is faster than four bits where nothing was measured: it was so on x86 with VNNI."""
_LEAST_CROSSOVER = 2
"""A single row is always the first form's: its answers are what the accuracy card is about."""
_QUICK_SLOTS = ((16, 16), (2, 8), (1, 4))
"""(threads at least, slots) where nothing was measured."""


@dataclass(frozen=True)
class ModelNeeds:
    """What a model asks of memory."""

    name: str
    weight_bytes: int
    """On disk."""
    cache_bytes_per_token: int
    """Keys and values of all layers; 0 for a model that has no cache."""
    context_length: int
    weight_format: str = ""
    """The format of most of its bytes."""
    twin_bytes: int = 0
    """Of the weights of its second form, with what that shares on disk; 0 where there is none."""

    @property
    def resident_bytes(self) -> int:
        """Weights in memory, as ONNX Runtime packs them."""
        return int(self.weight_bytes * WEIGHTS_IN_MEMORY)

    @property
    def resident_of_both(self) -> int:
        """The same with the second form beside the first."""
        return int((self.weight_bytes + self.twin_bytes) * WEIGHTS_IN_MEMORY)


def decide(hardware: Hardware, costs: Costs = Costs(), needs: ModelNeeds | None = None) -> Decisions:  # noqa: B008 - frozen
    """Provider, threads, affinity, slots and memory ceiling for `hardware`, and for a model where `needs` are told."""
    cores, why_cores = _cores_to_use(hardware, needs)
    threads = _threads(hardware, costs, cores, why_cores)
    ceiling = _memory_ceiling(hardware, needs)
    slots = _slots(costs, threads.value, ceiling.value, needs)
    twin = None if needs is None else decide_twin(costs, slots.value, ceiling.value, needs)
    if twin is not None and twin.use:
        # More rows may pay with the second form; as far as there is memory for them beside both.
        paired = _slots(costs, threads.value, ceiling.value, needs, twin=True)
        slots = paired if paired.value > slots.value else slots
    return Decisions(
        provider=_provider(hardware),
        threads=threads,
        affinity=_affinity(hardware, cores, threads.value),
        slots=slots,
        memory_ceiling_bytes=ceiling,
        twin=twin,
    )


def decide_twin(costs: Costs, slots: int, ceiling: int, needs: ModelNeeds) -> TwinDecision | None:
    """Whether the second form of a folder is kept in memory, and from how many rows on it runs; None where it has none.

    Both forms and a cache of `slots` sequences must fit under `ceiling` bytes: sequences at once are worth more than a twin.
    """
    if not needs.twin_bytes:
        return None
    rows, reason = _crossover(costs, needs.weight_format)
    tokens = min(needs.context_length, _USUAL_TOKENS)
    cache = slots * tokens * needs.cache_bytes_per_token
    weights = needs.resident_of_both
    if rows is None:
        return TwinDecision(use=False, from_rows=_USUAL_CROSSOVER, reason=reason)
    if weights + cache > ceiling:
        why = (
            f"both forms take {human_bytes(weights)} and the cache of {_count(slots, 'sequence')} {human_bytes(cache)}, "
            f"more than {human_bytes(ceiling)}"
        )
        return TwinDecision(use=False, from_rows=rows, reason=why)
    return TwinDecision(use=True, from_rows=rows, reason=f"{reason}; both forms take {human_bytes(weights)}")


def _crossover(costs: Costs, weight_format: str) -> tuple[int | None, str]:
    """Rows from which the second form is faster (None: it never is) and the words for it."""
    measured = [(point.tokens, point.first_milliseconds, point.twin_milliseconds) for point in costs.forms]
    words = "of this model"
    if not measured:
        twin = {point.rows: point.microseconds for point in _of_format(costs, _TWIN_FORMAT)}
        first = [(point.rows, point.microseconds) for point in _of_format(costs, weight_format)]
        measured = [(rows, time, twin[rows]) for rows, time in first if rows in twin]
        words = f"of products in {weight_format} and {_TWIN_FORMAT}"
    if not measured:
        return _USUAL_CROSSOVER, "usual for x86; nothing was measured"
    rows = crossover(measured)
    most, one, other = max(measured)
    if rows is None:
        return None, f"by the runs {words}, w8a8 is not faster even with {most} rows"
    return rows, f"by the runs {words}, {most} rows are {one / other:.1f} times as fast there"


def crossover(times: Sequence[tuple[int, float, float]]) -> int | None:
    """The number of rows from which the second of two forms is faster, by (rows, time of the first, time of the second).

    Between the last measured number of rows where it was slower and the first from which it stays faster, the ratio of times is
    taken to change evenly with the logarithm of rows. None: it is slower with the most rows that were measured.
    """
    points = sorted((rows, math.log(second / first)) for rows, first, second in times)
    if points[-1][1] >= 0:
        return None
    for (rows, ratio), (more, better) in reversed(list(itertools.pairwise(points))):
        if ratio >= 0:
            found = math.exp(math.log(rows) + math.log(more / rows) * ratio / (ratio - better))
            # Where both take just as long, it is not faster yet.
            return max(_LEAST_CROSSOVER, rows + 1, math.ceil(found))
    return max(_LEAST_CROSSOVER, points[0][0])


def _provider(hardware: Hardware) -> TextDecision:
    others = [provider.name for provider in hardware.providers if provider.available and provider.name != "cpu"]
    reason = "the formats and the cache of this program are made for the CPU provider"
    if others:
        reason += f"; {', '.join(others)} would load as well"
    elif hardware.accelerators:
        reason += f"; for the {hardware.accelerators[0].name} no provider of this onnxruntime loads"
    return TextDecision(value="cpu", reason=reason)


def _cores_to_use(hardware: Hardware, needs: ModelNeeds | None) -> tuple[CoreGroup, str]:
    """Performance cores, on one NUMA node; and the words for it."""
    groups = hardware.core_groups
    if not groups:
        count = max(1, min(hardware.physical_cores, math.floor(hardware.usable_cores)))
        return CoreGroup(kind="performance", physical_cores=count), f"{_count(count, 'physical core')}"
    group = groups[0]
    words = _count(group.physical_cores, "physical core")
    if len(groups) > 1:
        words = _count(group.physical_cores, "performance core")
        words += f": the {groups[1].physical_cores} efficiency cores would make them wait"
    elif sum(g.physical_cores for g in groups) < hardware.physical_cores:
        words += f" of {hardware.physical_cores} may be used"
    node = _home(hardware, group, needs)
    if node is None:
        return group, words
    cpus = tuple(cpu for cpu in group.cpus if cpu in node.cpus)
    return (
        CoreGroup(kind=group.kind, physical_cores=len(cpus), cpus=cpus),
        f"the {len(cpus)} physical cores of one NUMA node: the weights lie in one node's memory",
    )


def _home(hardware: Hardware, group: CoreGroup, needs: ModelNeeds | None) -> NumaNode | None:
    """The node to stay on: of several with usable cores the one with most.

    None where the weights do not fit into its memory, or where it has less than half of the cores: processors that are
    divided into four nodes or more lose more by leaving cores idle than by reading from a neighbour.
    """
    cores = {node: len(set(node.cpus) & set(group.cpus)) for node in hardware.numa}
    if sum(count > 0 for count in cores.values()) < 2:
        return None
    node = max(cores, key=lambda node: cores[node])
    fits = needs is None or needs.resident_bytes < _MEMORY_SHARE * node.memory_bytes
    return node if fits and 2 * cores[node] >= group.physical_cores else None


def _threads(hardware: Hardware, costs: Costs, cores: CoreGroup, why: str) -> CountDecision:
    value = cores.physical_cores
    affordable = max(1, math.floor(hardware.usable_cores))
    if affordable < value:
        value = affordable
        if hardware.cpu_quota is not None:
            why = (
                f"a quota allows {_cores(hardware.cpu_quota)} of processor time; more threads would be stopped in turn"
            )
        else:
            why = f"{hardware.usable_cores:g} cores may be used"
    speeds = {point.threads: point.gigabytes_per_second for point in costs.bandwidth if point.threads <= value}
    if value in speeds and speeds:
        best = max(speeds, key=lambda threads: speeds[threads])
        if speeds[value] < _LOSES * speeds[best]:
            why = f"{_count(best, 'thread')} read {speeds[best]:.0f} GB/s, {value} only {speeds[value]:.0f} GB/s"
            value = best
        else:
            why += f"; together they read {speeds[value]:.0f} GB/s"
            if value > 1 and 1 in speeds:
                why += f", one alone {speeds[1]:.0f} GB/s"
    return CountDecision(value=value, reason=why)


def _affinity(hardware: Hardware, cores: CoreGroup, threads: int) -> CoresDecision:
    if not cores.cpus:
        return CoresDecision(
            value=None, reason=f"{hardware.system} places the threads; this program does not pin there"
        )
    if hardware.cpu_quota is not None and hardware.cpu_quota < cores.physical_cores:
        return CoresDecision(value=None, reason="under a CPU quota the system must be free to move the threads")
    pinned = cores.cpus[:threads]
    if sum(g.physical_cores for g in hardware.core_groups) > cores.physical_cores:
        hybrid = len(hardware.core_groups) > 1
        reason = (
            "keeps the threads off the efficiency cores" if hybrid else "keeps the threads near the weights' memory"
        )
        return CoresDecision(value=pinned, reason=reason)
    return CoresDecision(
        value=None, reason="all cores are alike and on one memory, so that pinning would only hinder the system"
    )


def _memory_ceiling(hardware: Hardware, needs: ModelNeeds | None) -> CountDecision:
    value = max(1, int(min(hardware.memory_free_bytes, hardware.memory_limit_bytes) * _MEMORY_SHARE))
    place = "the container" if hardware.memory_limit_bytes < hardware.memory_total_bytes else "the machine"
    free = human_bytes(hardware.memory_free_bytes)
    reason = f"{_MEMORY_SHARE:.0%} of the {free} that are free in {place}; the rest is the system's"
    if needs is not None and needs.resident_bytes > value:
        reason += f". {needs.name} does not fit: its weights alone take {human_bytes(needs.resident_bytes)}"
    elif needs is not None:
        reason += f". The weights of {needs.name} take {human_bytes(needs.resident_bytes)} of it"
    return CountDecision(value=value, reason=reason)


def _slots(costs: Costs, threads: int, ceiling: int, needs: ModelNeeds | None, *, twin: bool = False) -> CountDecision:
    """`twin`: with both forms in memory, each where it is faster."""
    value, reason = _slots_by_speed(costs, threads, needs, twin=twin)
    if needs is None or not needs.cache_bytes_per_token:
        return CountDecision(value=value, reason=reason)
    tokens = min(needs.context_length, _USUAL_TOKENS)
    each = tokens * needs.cache_bytes_per_token
    resident = needs.resident_of_both if twin else needs.resident_bytes
    fitting = max(1, (ceiling - resident) // max(1, each))
    if fitting < value:
        value, reason = fitting, f"more do not fit: a sequence of {tokens} tokens takes {human_bytes(each)} of cache"
    else:
        reason += f"; {tokens} tokens of cache for each are {human_bytes(value * each)} in all"
    return CountDecision(value=value, reason=reason)


def _slots_by_speed(costs: Costs, threads: int, needs: ModelNeeds | None, *, twin: bool) -> tuple[int, str]:
    """The number of rows up to which a product gives more rows a second."""
    points = _points_of(costs, needs.weight_format if needs else "")
    if twin and points:
        points = _faster(points, _points_of(costs, _TWIN_FORMAT))
    if len(points) < 2:
        slots = next(slots for least, slots in _QUICK_SLOTS if threads >= least)
        return slots, f"usual for {_count(threads, 'thread')}; nothing was measured"
    chosen = points[0]
    for point in points[1:]:
        if point.rows <= _MOST_SLOTS and _rate(point) >= _PAYS * _rate(chosen):
            chosen = point
    gain = _rate(chosen) / _rate(points[0])
    words = (
        f"a product of {chosen.rows} rows ({chosen.format}) gives {gain:.1f} times the rows a second that one row gives"
    )
    if chosen.rows == points[0].rows:
        words = f"more rows at once ({chosen.format}) give no more rows a second"
    return chosen.rows, words


def _points_of(costs: Costs, weight_format: str) -> list[MatmulPoint]:
    """Of the model's format, or of the usual one; by rows."""
    measured = {point.format for point in usual_products(costs)}
    wanted = weight_format if weight_format in measured else _USUAL_FORMAT
    return _of_format(costs, wanted)


def _of_format(costs: Costs, label: str) -> list[MatmulPoint]:
    return [point for point in usual_products(costs) if point.format == label]


def _faster(points: Sequence[MatmulPoint], others: Sequence[MatmulPoint]) -> list[MatmulPoint]:
    """The faster of two formats for each number of rows of `points`; a single row is the first one's."""
    rivals = {other.rows: other for other in others if other.rows >= _LEAST_CROSSOVER}
    return [min(point, rivals.get(point.rows, point), key=lambda one: one.microseconds) for point in points]


def _rate(point: MatmulPoint) -> float:
    return point.rows / point.microseconds


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _cores(count: float) -> str:
    return "one core" if count == 1 else f"{count:g} cores"
