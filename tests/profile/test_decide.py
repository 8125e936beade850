"""Decisions: the laws that hold for any machine, and the words for those that are known."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiasst.artifacts.device import (
    BandwidthPoint,
    CoreGroup,
    Costs,
    FormsPoint,
    Hardware,
    MatmulPoint,
    NumaNode,
    Provider,
    TwinDecision,
)
from aiasst.profile.decide import ModelNeeds, crossover, decide, decide_twin
from aiasst.profile.hardware import read_hardware
from aiasst.profile.host import Host
from tests.profile.conftest import MOUNTS_V2, Plant, cpus, meminfo, x86

GIB = 2**30


def machine(**changes: Any) -> Hardware:
    cores = changes.pop("cores", 8)
    values: dict[str, Any] = {
        "machine_id": "0",
        "system": "Linux",
        "architecture": "x86_64",
        "cpu_model": "cpu",
        "physical_cores": cores,
        "logical_cores": cores,
        "usable_cores": float(cores),
        "core_groups": (CoreGroup(kind="performance", physical_cores=cores, cpus=tuple(range(cores))),),
        "instruction_sets": (),
        "caches": (),
        "memory_total_bytes": 16 * GIB,
        "memory_limit_bytes": 16 * GIB,
        "memory_free_bytes": 10 * GIB,
    }
    return Hardware.model_validate(values | changes)


def read(speeds: dict[int, float]) -> Costs:
    return Costs(
        bandwidth=tuple(BandwidthPoint(threads=t, gigabytes_per_second=s, noise=0.0) for t, s in speeds.items())
    )


def products(microseconds: dict[int, float], label: str = "int4-b128") -> Costs:
    return Costs(
        matmul=tuple(
            MatmulPoint(format=label, rows=r, k=8, n=8, threads=1, microseconds=us, gigamacs_per_second=1.0, noise=0.0)
            for r, us in microseconds.items()
        )
    )


V1 = {
    "/proc/self/cgroup": "2:cpu,cpuacct:/box\n",
    "/proc/self/mountinfo": "40 35 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n",
    "/sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "100000\n",
    "/sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000\n",
}
V2 = {
    "/proc/self/cgroup": "0::/box\n",
    "/proc/self/mountinfo": MOUNTS_V2,
    "/sys/fs/cgroup/box/cpu.max": "100000 100000\n",
}


@pytest.mark.parametrize("groups", [V1, V2], ids=["version 1", "version 2"])
def test_a_quota_of_one_of_two_cores_gives_one_thread_that_is_not_pinned(plant: Plant, groups: dict[str, str]) -> None:
    tree = {"/proc/cpuinfo": x86("AMD EPYC", "avx2", 2), "/proc/meminfo": meminfo(2**24, 2**23), **cpus([(0,), (1,)])}
    hardware = read_hardware(plant({**tree, **groups}, affinity=frozenset({0, 1})), thorough=False)
    decisions = decide(hardware)
    assert (hardware.physical_cores, hardware.cpu_quota, hardware.usable_cores) == (2, 1.0, 1.0)
    assert decisions.threads.value == 1
    assert "a quota allows one core" in decisions.threads.reason
    assert decisions.affinity.value is None
    assert decide(read_hardware(plant(tree, affinity=frozenset({0, 1})), thorough=False)).threads.value == 2


@st.composite
def machines(draw: st.DrawFn) -> Hardware:
    fast, slow = draw(st.integers(1, 64)), draw(st.integers(0, 16))
    threads = draw(st.sampled_from([1, 2]))
    numbered = draw(st.booleans())
    kinds = [("performance", range(fast)), ("efficiency", range(fast, fast + slow))]
    groups = tuple(
        CoreGroup.model_validate({"kind": k, "physical_cores": len(c), "cpus": tuple(c) if numbered else ()})
        for k, c in kinds
        if len(c)
    )
    quota = draw(st.none() | st.floats(0.05, 128))
    total = draw(st.integers(64 * 2**20, 2**40))
    limit = draw(st.integers(2**20, total))
    half = (fast + slow) // 2
    nodes = (
        NumaNode(cpus=tuple(range(half)), memory_bytes=total // 2),
        NumaNode(cpus=tuple(range(half, fast + slow)), memory_bytes=total // 2),
    )
    return machine(
        physical_cores=fast + slow,
        logical_cores=(fast + slow) * threads,
        usable_cores=min((fast + slow) * threads, quota or math.inf),
        cpu_quota=quota,
        core_groups=draw(st.sampled_from([groups, ()])),
        numa=draw(st.sampled_from([nodes, ()])),
        memory_total_bytes=total,
        memory_limit_bytes=limit,
        memory_free_bytes=draw(st.integers(0, limit)),
    )


needs_of_models = st.builds(
    ModelNeeds,
    name=st.just("model"),
    weight_bytes=st.integers(0, 2**40),
    cache_bytes_per_token=st.integers(0, 2**22),
    context_length=st.integers(0, 2**20),
    weight_format=st.sampled_from(["", "int4-b128", "w8a8", "fp32"]),
)
measured = st.dictionaries(st.integers(1, 128), st.floats(0.1, 1000), max_size=6)
timed = st.dictionaries(st.sampled_from([1, 8, 32, 128]), st.floats(0.1, 1e6), max_size=4)


@given(machines(), measured, timed, st.none() | needs_of_models)
def test_laws(hardware: Hardware, speeds: dict[int, float], times: dict[int, float], needs: ModelNeeds | None) -> None:
    costs = Costs(bandwidth=read(speeds).bandwidth, matmul=products(times).matmul)
    decisions = decide(hardware, costs, needs)
    threads = decisions.threads.value
    assert 1 <= threads <= max(1, math.floor(hardware.usable_cores))
    assert threads <= hardware.physical_cores
    assert 1 <= decisions.slots.value <= 32
    assert 1 <= decisions.memory_ceiling_bytes.value <= max(1, hardware.memory_free_bytes)
    assert decisions.memory_ceiling_bytes.value <= hardware.memory_limit_bytes
    if decisions.affinity.value is not None:
        usable = {cpu for group in hardware.core_groups for cpu in group.cpus}
        assert len(set(decisions.affinity.value)) == threads
        assert set(decisions.affinity.value) <= usable
    for name, decision in decisions:
        assert (name == "twin" and needs is None) or decision is None or decision.reason


@given(machines(), needs_of_models)
def test_slots_fit_under_the_ceiling_or_there_is_one(hardware: Hardware, needs: ModelNeeds) -> None:
    decisions = decide(hardware, needs=needs)
    cache = decisions.slots.value * min(needs.context_length, 4096) * needs.cache_bytes_per_token
    fits = needs.resident_bytes + cache <= decisions.memory_ceiling_bytes.value
    assert fits or decisions.slots.value == 1 or not cache


def test_half_a_core_gets_one_thread(container_v1: Host) -> None:
    decisions = decide(read_hardware(container_v1, thorough=False))
    assert decisions.threads.value == 1
    assert "0.5 cores" in decisions.threads.reason
    assert decisions.affinity.value is None
    assert decisions.memory_ceiling_bytes.value == int(412 * 2**20 * 0.8)
    assert "in the container" in decisions.memory_ceiling_bytes.reason


def test_one_and_a_half_cores_get_one_thread(container_v2: Host) -> None:
    assert decide(read_hardware(container_v2, thorough=False)).threads.value == 1


def test_a_hybrid_uses_its_performance_cores_and_stays_on_them(hybrid_laptop: Host) -> None:
    decisions = decide(read_hardware(hybrid_laptop, thorough=False))
    assert decisions.threads.value == 6
    assert "efficiency" in decisions.threads.reason
    assert decisions.affinity.value == (0, 2, 4, 6, 8, 10)


def test_a_mac_uses_its_performance_cores_and_is_not_pinned(mac: Host) -> None:
    decisions = decide(read_hardware(mac, thorough=False))
    assert (decisions.threads.value, decisions.affinity.value) == (4, None)


def test_two_nodes_use_one_unless_the_model_is_too_large_for_it(amx_server: Host) -> None:
    hardware = read_hardware(amx_server, thorough=False)
    assert decide(hardware).threads.value == 8
    assert decide(hardware).affinity.value == tuple(range(8))
    large = ModelNeeds("large", 70 * 10**9, 0, 4096)
    assert decide(hardware, needs=large).threads.value == 16
    assert decide(hardware, needs=large).affinity.value is None


def test_four_small_nodes_are_all_used() -> None:
    nodes = tuple(NumaNode(cpus=(2 * n, 2 * n + 1), memory_bytes=4 * GIB) for n in range(4))
    decisions = decide(machine(cores=8, numa=nodes))
    assert (decisions.threads.value, decisions.affinity.value) == (8, None)


def test_smt_siblings_get_no_thread_of_their_own() -> None:
    decisions = decide(machine(cores=4, logical_cores=8, usable_cores=8.0))
    assert decisions.threads.value == 4


def test_threads_that_lose_are_left_out() -> None:
    losing = decide(machine(cores=4), read({1: 20, 2: 30, 4: 18}))
    assert (losing.threads.value, "2 threads read 30 GB/s" in losing.threads.reason) == (2, True)
    # Less than a tenth is noise, and cores serve the prefill.
    assert decide(machine(cores=4), read({1: 20, 2: 30, 4: 28})).threads.value == 4


def test_slots_follow_the_format() -> None:
    flat, steep = {1: 100.0, 8: 400.0, 32: 1500.0, 128: 6000.0}, {1: 100.0, 8: 150.0, 32: 260.0, 128: 900.0}
    assert decide(machine(), products(flat)).slots.value == 8
    both = Costs(matmul=products(flat).matmul + products(steep, "w8a8").matmul)
    model = ModelNeeds("m", 1000, 10, 100, "w8a8")
    assert decide(machine(), both, model).slots.value == 32
    assert "2.0" in decide(machine(), products(flat)).slots.reason
    assert decide(machine(), products({1: 10.0, 8: 80.0})).slots.value == 1


def test_a_model_that_does_not_fit_is_told() -> None:
    decisions = decide(machine(), needs=ModelNeeds("giant", 40 * 10**9, 1000, 4096))
    assert "giant does not fit: its weights alone take 48.0 GB" in decisions.memory_ceiling_bytes.reason
    assert decisions.slots.value == 1


def test_memory_bounds_the_slots() -> None:
    needs = ModelNeeds("m", 4 * 10**9, 500_000, 131072)
    decisions = decide(machine(memory_free_bytes=12 * 10**9), needs=needs)
    # (9.6 GB - 4.8 GB) / (4096 tokens of 0.5 MB) = 2.3
    assert (decisions.slots.value, "more do not fit" in decisions.slots.reason) == (2, True)


@pytest.mark.parametrize(("name", "said"), [("cuda", "cuda would load as well"), ("cpu", "made for the CPU provider")])
def test_provider(name: str, said: str) -> None:
    providers = (Provider(name=name, available=True, reason="loads"),)
    decision = decide(machine(providers=providers)).provider
    assert (decision.value, said in decision.reason) == ("cpu", True)


# ---------------------------------------------------------------------- a second form

TWO_FORMS = ModelNeeds("pair", GIB, 1024, 4096, "int4-b128", twin_bytes=2 * GIB)


def forms(times: dict[int, tuple[float, float]]) -> Costs:
    return Costs(
        forms=tuple(
            FormsPoint(tokens=rows, first_milliseconds=first, twin_milliseconds=second, noise=0.0)
            for rows, (first, second) in times.items()
        )
    )


def twin_of(costs: Costs, ceiling: int = 100 * GIB, needs: ModelNeeds = TWO_FORMS) -> TwinDecision:
    found = decide_twin(costs, 8, ceiling, needs)
    assert found is not None
    return found


def test_the_second_form_runs_from_where_it_is_faster() -> None:
    decided = twin_of(forms({2: (10, 20), 8: (16, 24), 32: (60, 30), 128: (240, 90)}))
    # Even with the logarithm of rows: 1.5 times as long at 8, half as long at 32.
    expected = math.exp(math.log(8) + math.log(4) * math.log(1.5) / (math.log(1.5) + math.log(2)))
    assert (decided.use, decided.from_rows) == (True, math.ceil(expected))
    assert "128 rows are 2.7 times as fast" in decided.reason


def test_products_say_it_where_the_forms_were_not_run() -> None:
    times = {1: 10.0, 8: 80.0, 32: 300.0, 128: 1200.0}
    first, second = products(times), products({1: 20, 8: 85, 32: 200, 128: 700}, "w8a8")
    decided = twin_of(Costs(matmul=(*first.matmul, *second.matmul)))
    assert decided.use and 8 < decided.from_rows < 16
    assert "products in int4-b128 and w8a8" in decided.reason
    # What was measured of the model itself goes before.
    both = Costs(matmul=(*first.matmul, *second.matmul), forms=forms({4: (1, 2), 8: (2, 1)}).forms)
    assert 4 < twin_of(both).from_rows < 8
    # Of another format than this model's nothing follows.
    other = Costs(matmul=(*products(times, "int2-b64").matmul, *second.matmul))
    assert twin_of(other).from_rows == twin_of(Costs()).from_rows == 12
    assert "nothing was measured" in twin_of(Costs()).reason


def test_a_second_form_that_is_never_faster_is_not_opened() -> None:
    decided = twin_of(forms({2: (10, 20), 128: (90, 91)}))
    assert not decided.use and "not faster even with 128 rows" in decided.reason


def test_both_forms_and_the_cache_must_fit() -> None:
    weights, cache = int(3 * GIB * 1.2), 8 * 4096 * 1024
    assert twin_of(Costs(), weights + cache).use
    refused = twin_of(Costs(), weights + cache - 1)
    assert not refused.use and "more than" in refused.reason and refused.from_rows == 12
    assert decide_twin(Costs(), 8, 100 * GIB, ModelNeeds("one", GIB, 1024, 4096)) is None


def test_decide_includes_the_second_form() -> None:
    decided = decide(machine(memory_free_bytes=10 * GIB), needs=TWO_FORMS).twin
    assert decided is not None and decided.use
    assert decide(machine()).twin is None
    tight = decide(machine(memory_free_bytes=4 * GIB), needs=TWO_FORMS)
    assert tight.twin is not None and not tight.twin.use
    # Sequences at once are not given up for it.
    assert tight.slots == decide(machine(memory_free_bytes=4 * GIB), needs=ModelNeeds("pair", GIB, 1024, 4096)).slots


def test_more_sequences_pay_with_the_second_form_where_there_is_memory() -> None:
    first, second = products({1: 20, 8: 97, 32: 366}), products({1: 10, 8: 120, 32: 175}, "w8a8")
    costs = Costs(matmul=(*first.matmul, *second.matmul))
    one = ModelNeeds("pair", GIB, 1024, 4096, "int4-b128")
    roomy, tight = machine(memory_free_bytes=10 * GIB), machine(memory_free_bytes=int(4.6 * GIB))
    alone = decide(roomy, costs, one).slots
    both = decide(roomy, costs, TWO_FORMS)
    assert (alone.value, both.slots.value) == (8, 32)
    assert "32 rows (w8a8)" in both.slots.reason
    # A single row stays the first form's, however fast the second's product of one row is.
    assert "3.7 times" in both.slots.reason
    fewer = decide(tight, costs, TWO_FORMS)
    assert fewer.twin is not None and fewer.twin.use and 8 <= fewer.slots.value < 32


@given(
    st.lists(
        st.tuples(st.integers(1, 512), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3)),
        min_size=1,
        unique_by=lambda point: point[0],
    )
)
def test_from_the_crossover_on_the_second_is_faster_wherever_it_was_measured(
    times: list[tuple[int, float, float]],
) -> None:
    found = crossover(times)
    largest = max(times)
    if found is None:
        assert largest[2] >= largest[1]
        return
    assert found >= 2
    assert all(second < first for rows, first, second in times if rows >= found)
    assert largest[2] < largest[1] and found <= max(2, largest[0])
