"""Measuring: what the micro-models compute, that bounds hold, and that figures come out. No assertion on speed."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from aiasst.artifacts.device import Cache, Costs, Hardware
from aiasst.profile import measure, products
from aiasst.profile.attention import Case, measure_attention
from aiasst.profile.bandwidth import buffer_bytes, measure_bandwidth
from aiasst.profile.hardware import read_hardware
from aiasst.profile.host import Host
from aiasst.profile.layers import layer_chain, measure_layers
from aiasst.profile.measure import (
    ROWS,
    Chain,
    Grid,
    chains_of,
    last_level_cache,
    links_of,
    measure_costs,
    measure_loading,
    thread_counts,
    visit,
)
from aiasst.profile.overheads import NODE_ROWS, NODES, instant_decoder, measure_overheads, small_nodes
from aiasst.profile.products import FORMS, INPUT, SIZE, Form, chain
from aiasst.profile.sampling import LEAST
from aiasst.progress import Progress
from aiasst.runtime.session import DecoderSession, GraphSession

MIB = 2**20


def initializers(model: bytes) -> dict[str, np.ndarray]:
    graph = onnx.load_from_string(model).graph
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}


def dense(form: Form, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The weight [K, N] that the format's bytes stand for, by MatMulNBits' definition."""
    weight = arrays["w0"]
    if form.label == "fp32":
        return weight.astype(np.float32)
    if form.label == "w8a8":
        return weight.astype(np.float32) * arrays["w0.scale"]
    bits = int(form.label[3])
    shifts = np.arange(0, 8, bits)
    values = (weight[..., None] >> shifts) & (2**bits - 1)
    centred = values.reshape(*weight.shape[:2], -1).astype(np.float32) - 2 ** (bits - 1)
    return (centred * arrays["w0.scale"][..., None]).reshape(SIZE, SIZE).T


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.label)
def test_a_product_computes_what_its_format_means(form: Form) -> None:
    model = chain(form, 1)
    x = np.random.default_rng(1).standard_normal((3, SIZE), np.float32)
    (y,) = GraphSession.open(model).run({INPUT: x})
    wanted = x @ dense(form, initializers(model))
    assert np.linalg.norm(y - wanted) / np.linalg.norm(wanted) < 0.02  # activations are rounded to eight bits
    assert 0.5 < np.std(y) < 2


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.label)
def test_a_chain_stays_finite(form: Form) -> None:
    x = np.random.default_rng(1).standard_normal((2, SIZE), np.float32)
    (y,) = GraphSession.open(chain(form, 6)).run({INPUT: x})
    assert np.isfinite(y).all()
    assert 0.1 < np.std(y) < 10


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.label)
def test_the_bytes_of_a_link(form: Form) -> None:
    assert initializers(chain(form, 1))["w0"].nbytes == form.link_bytes()


def test_a_chain_is_larger_than_the_cache_and_small_against_memory() -> None:
    int4 = next(form for form in FORMS if form.label == "int4-b128")
    assert links_of(int4, 32 * MIB, 100 * 2**30) * int4.link_bytes() == 64 * MIB
    assert links_of(int4, 2**30, 100 * 2**30) * int4.link_bytes() == 192 * MIB
    assert links_of(int4, 32 * MIB, 60 * MIB) * int4.link_bytes() <= 12 * MIB
    assert links_of(int4, 0, 0) == 1


def test_the_buffer_is_larger_than_the_cache_and_small_against_memory() -> None:
    assert buffer_bytes(2 * MIB, 100 * 2**30) == 256 * MIB
    assert buffer_bytes(64 * MIB, 100 * 2**30) == 512 * MIB
    assert buffer_bytes(2**30, 100 * 2**30) == 2**30
    assert buffer_bytes(2**30, 100 * MIB) == 25 * MIB


def test_thread_counts(amx_server: Host, hybrid_laptop: Host, container_v1: Host, container_v2: Host) -> None:
    def counts(host: Host) -> tuple[int, ...]:
        return thread_counts(read_hardware(host, thorough=False))

    assert counts(amx_server) == (1, 2, 4, 8, 16, 32)
    assert counts(hybrid_laptop) == (1, 2, 4, 6, 8, 14, 16, 20)
    assert counts(container_v1) == counts(container_v2) == (1,)


def test_last_level_cache(raspberry: Host) -> None:
    hardware = read_hardware(raspberry, thorough=False)
    assert last_level_cache(hardware) == 2048 * 1024
    instructions = Cache(level=1, kind="instruction", bytes=2**40, instances=1)
    assert last_level_cache(hardware.model_copy(update={"caches": (instructions,)})) == 0


def test_bandwidth_is_read() -> None:
    events: list[Progress] = []
    points = measure_bandwidth((1, 2), cache_bytes=0, free_bytes=64 * MIB, progress=events.append)
    assert [point.threads for point in points] == [1, 2]
    # Any machine that runs this reads more than 0.1 GB/s, and none reads 100 TB/s.
    assert all(0.1 < point.gigabytes_per_second < 1e5 and 0 <= point.noise < 1 for point in points)
    assert events[-1].done == events[-1].total


SMALL = Grid(((2048, 2048),), ((256, 768),), 0.0, 60.0, (Case(1, 1, 16), Case(1, 1, 64)), 60.0, 0.0)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.label)
def test_a_chain_goes_there_and_back(form: Form) -> None:
    x = np.random.default_rng(1).standard_normal((2, 256), np.float32)
    (y,) = GraphSession.open(chain(form, 4, 256, 768)).run({INPUT: x})
    assert y.shape == x.shape
    assert 0.1 < np.std(y) < 10
    with pytest.raises(ValueError, match="3 products"):
        chain(form, 3, 256, 768)


def test_rows_that_take_too_long_are_left_out() -> None:
    one = Chain(FORMS[0], 256, 256, 1, cached=True, rows=ROWS)
    clock = iter(range(1000))
    visit(one, 1, 2.0, clock=lambda: float(next(clock)))  # each run takes a second, a quarter of two is the most
    assert list(one.trials) == [1]


def test_a_second_visit_adds_to_the_first() -> None:
    one = Chain(FORMS[0], 256, 256, 1, cached=True, rows=(1, 2))
    visit(one, 1, 0.0)
    visit(one, 1, 0.0)
    visits = {rows: [len(visit) for visit in trial.visits] for rows, trial in one.trials.items()}
    assert visits[1] == [LEAST, LEAST]
    # Where a run takes longer than no time at all, the first number of rows is the last.
    assert set(visits) <= {1, 2}


def test_what_decisions_rest_on_is_measured_first() -> None:
    chains = chains_of(measure.QUICK, 32 * MIB, 2**33)
    assert [(chain.form.label, chain.cached) for chain in chains[:3]] == [
        ("int4-b128", False), ("int4-b128", True), ("int8-b128", False)
    ]  # fmt: skip
    assert all(chain.links % 2 == 0 for chain in chains if chain.k != chain.n)
    assert {chain.form.label for chain in chains} == {
        "int2-b64", "int4-b32", "int4-b64", "int4-b128", "int4-b256", "int8-b128", "w8a8", "fp32"
    }  # fmt: skip


def test_no_two_links_have_the_same_weights() -> None:
    """Of equal ones ONNX Runtime would keep one, and no weight would come from memory."""
    for form in FORMS:
        arrays = initializers(chain(form, 4, 256, 768))
        weights = {arrays[f"w{link}"].tobytes() for link in range(4)}
        assert len(weights) == 4, form.label


def test_attention_of_this_machine() -> None:
    cases = (Case(1, 1, 16), Case(2, 1, 16), Case(1, 8, 4), Case(1, 1, 16, 4, 2))
    points = measure_attention(cases, 1, free_bytes=64 * MIB, seconds=60)
    assert [(p.cache, p.rows, p.new_tokens, p.heads) for p in points] == [
        (cache, case.rows, case.new_tokens, case.heads) for cache in ("float32", "int8") for case in cases
    ]
    assert all(point.microseconds > 0 for point in points)
    assert measure_attention((Case(1, 1, 16),), 1, free_bytes=1000, seconds=60) == ()


def test_overheads_of_this_machine() -> None:
    points = measure_overheads(1, seconds=60)
    nodes = [point for point in points if point.kind == "node"]
    assert [node.rows for node in nodes] == list(NODE_ROWS)
    assert nodes[-1].microseconds > nodes[0].microseconds > 0
    steps = {(point.rows, point.vocabulary) for point in points if point.kind == "step"}
    assert steps == {(1, 4096), (8, 4096), (1, 65536), (8, 65536)}
    assert len(onnx.load_from_string(small_nodes()).graph.node) == NODES


def test_the_instant_decoder_gives_the_scores_of_the_last_token() -> None:
    model = instant_decoder(50)
    scores = initializers(model)["scores"]
    session = DecoderSession(GraphSession.open(model), context_length=8)
    cache = [np.zeros((2, 1, 8, 16), np.float32) for _ in range(2)]
    found = session.step(np.array([[3, 4], [5, 49]]), (2, 2), cache)
    np.testing.assert_array_equal(found, scores[[4, 49 % 16]])
    assert all(array[:, :, :2].any() and not array[:, :, 2:].any() for array in cache)


def test_whole_layers_of_this_machine() -> None:
    points = measure_layers(1, chain_bytes=8 * MIB, seconds=60)
    assert [(point.rows, point.cached) for point in points] == [(1, False), (8, False), (1, True), (8, True)]
    assert all(point.kind == "layer" and point.microseconds > 0 for point in points)
    kinds = [node.op_type for node in onnx.load_from_string(layer_chain(3)).graph.node]
    assert kinds.count("MatMulNBits") == 12 and kinds.count("GroupQueryAttention") == 3


def test_loading_of_a_chain() -> None:
    (point,) = measure_loading(FORMS[:1], 1, seconds=60)
    assert point.format == FORMS[0].label
    # Packing comes on top.
    assert 0 < point.packed_gigabytes_per_second < point.load_gigabytes_per_second < 1e4


def test_costs_of_this_machine(raspberry: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "FORMS", FORMS[:2])
    small = read_hardware(raspberry, thorough=False).model_copy(
        update={"usable_cores": 1.0, "memory_free_bytes": 120 * MIB}
    )
    asked: list[Costs] = []

    def threads_for(costs: Costs) -> int:
        asked.append(costs)
        return 1

    costs = measure_costs(small, threads_for, grid=SMALL)
    # Threads are decided by the first visit, and the best of all visits is told.
    assert [p.threads for p in asked[0].bandwidth] == [p.threads for p in costs.bandwidth]
    first, best = asked[0].bandwidth[0], costs.bandwidth[0]
    assert best.gigabytes_per_second >= first.gigabytes_per_second
    assert {point.format for point in costs.matmul} == {form.label for form in FORMS[:2]}
    assert {(point.k, point.cached) for point in costs.matmul} == {(2048, False), (256, True)}
    assert costs.loading == ()  # no time was given to it
    assert costs.attention
    point = costs.matmul[0]
    assert point.gigamacs_per_second == pytest.approx(point.rows * SIZE**2 / point.microseconds / 1e3, rel=0.02)


def test_a_format_that_is_refused_is_left_out(raspberry: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Form("broken", 8, lambda _, weight, x, y, k, n: products.Link((products.Node("Nonsense", [x], [y]),), {}))
    monkeypatch.setattr(measure, "FORMS", (broken, FORMS[0]))
    events: list[Progress] = []
    hardware = read_hardware(raspberry, thorough=False).model_copy(update={"memory_free_bytes": 8 * MIB})
    costs = measure_costs(hardware, lambda _: 1, grid=SMALL, progress=events.append)
    assert {point.format for point in costs.matmul} == {FORMS[0].label}
    assert any("broken left out" in event.note for event in events)


def test_no_format_is_begun_when_time_is_over(raspberry: Host) -> None:
    from dataclasses import replace

    hardware: Hardware = read_hardware(raspberry, thorough=False)
    small = hardware.model_copy(update={"memory_free_bytes": 8 * MIB})
    assert measure_costs(small, lambda _: 1, grid=replace(SMALL, total_seconds=-1.0)).matmul == ()
    assert products.SIZE % 256 == 0  # every block divides it
