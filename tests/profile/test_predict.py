"""Predictions: laws that hold for any machine and model, and measured costs that come back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiasst.artifacts.device import BandwidthPoint, Cache, Costs, MatmulPoint, OverheadPoint
from aiasst.errors import ArtifactError
from aiasst.profile import library
from aiasst.profile.advise import known_models
from aiasst.profile.graphics import predict_on_card
from aiasst.profile.library import DeviceDescription, GraphicsCard
from aiasst.profile.offers import Offer, offers
from aiasst.profile.predict import (
    Prediction,
    Workload,
    beside_products,
    beyond_the_parts,
    predict,
    resident_bytes,
)
from aiasst.profile.ranges import Range, total
from aiasst.profile.shapes import ModelShape
from aiasst.profile.speeds import Speeds, described, measured
from tests.profile.test_decide import machine

LLAMA = next(model.shape for model in known_models() if model.name == "meta-llama/Llama-3.2-1B-Instruct")
INT4 = next(offer for offer in offers() if offer.name == "int4")
MEBI = 2**20

devices = st.sampled_from([library.describe(name) for name in library.names()])
shapes = st.sampled_from([model.shape for model in known_models()])
forms = st.sampled_from(offers())


@st.composite
def ranges(draw: st.DrawFn) -> Range:
    return Range(*sorted(draw(st.lists(st.floats(0.001, 1e6), min_size=3, max_size=3))))


def predicted(
    description: DeviceDescription, shape: ModelShape, offer: Offer, context: int = 4096, ceiling: int | None = None
) -> Prediction:
    speeds = described(description, description.working.count)
    found = predict(shape, offer.form(shape), Workload.within(context, shape), speeds, ceiling)
    assert found is not None
    return found


def figures(prediction: Prediction) -> list[Range]:
    steps = [rate(count) for count, _ in prediction.steps for rate in (prediction.decode_rate, prediction.full_rate)]
    return [prediction.prefill_rate, prediction.first_token, prediction.resident, *steps]


@given(ranges(), ranges(), st.floats(0, 100))
def test_ranges_stay_in_order(a: Range, b: Range, factor: float) -> None:
    for made in (a + b, a.by(b), a.times(factor), a.under(factor), total([a, b, a])):
        assert made.low <= made.value <= made.high


def test_a_range_out_of_order_is_refused() -> None:
    with pytest.raises(ValueError, match="no range"):
        Range(2, 1, 3)


@given(devices, shapes, forms, st.integers(16, 40_000))
def test_every_figure_lies_between_its_bounds(
    description: DeviceDescription, shape: ModelShape, offer: Offer, context: int
) -> None:
    prediction = predicted(description, shape, offer, context)
    for figure in figures(prediction):
        assert 0 < figure.low <= figure.value <= figure.high
    assert prediction.surely_fits <= prediction.fits <= prediction.may_fit


@given(devices, shapes, forms, st.floats(1.0, 20))
def test_more_bandwidth_is_never_slower(
    description: DeviceDescription, shape: ModelShape, offer: Offer, factor: float
) -> None:
    memory = description.memory
    faster = memory.model_copy(update={"gigabytes_per_second": memory.gigabytes_per_second * factor})
    before = predicted(description, shape, offer)
    after = predicted(description.model_copy(update={"memory": faster}), shape, offer)
    for count, _ in before.steps:
        assert after.decode_rate(count).value >= before.decode_rate(count).value * (1 - 1e-9)
    assert after.prefill.value <= before.prefill.value * (1 + 1e-9)


@given(devices, shapes, forms, st.integers(0, 2**40), st.integers(0, 2**40))
def test_more_memory_never_unfits(
    description: DeviceDescription, shape: ModelShape, offer: Offer, one: int, other: int
) -> None:
    less, more = sorted((one, other))
    assert (
        predicted(description, shape, offer, ceiling=less).fits
        <= predicted(description, shape, offer, ceiling=more).fits
    )


@given(shapes, forms, st.integers(1, 100_000), st.integers(1, 100_000))
def test_a_longer_context_never_takes_less_memory(shape: ModelShape, offer: Offer, one: int, other: int) -> None:
    form = offer.form(shape)
    shorter, longer = (resident_bytes(shape, form, Workload.within(c, shape)).value for c in sorted((one, other)))
    assert shorter <= longer


@given(devices, shapes)
def test_fewer_bits_take_less_memory(description: DeviceDescription, shape: ModelShape) -> None:
    order = [offer for offer in offers() if offer.name in ("fp16", "int8", "int4", "int2")]
    sizes = [predicted(description, shape, offer).resident.value for offer in order]
    assert sizes == sorted(sizes, reverse=True)


@given(devices, shapes, forms)
def test_eight_sequences_together_are_faster_than_one_and_each_is_slower(
    description: DeviceDescription, shape: ModelShape, offer: Offer
) -> None:
    prediction = predicted(description, shape, offer)
    alone, together = prediction.decode_rate(1).value, prediction.decode_rate(8).value
    assert together / 8 <= alone
    assert together >= alone * 0.99
    # A long past is never read for nothing.
    assert prediction.full_rate(1).value <= alone
    assert prediction.full_rate(8).value <= together


def costs(scale: float = 1.0, label: str = "int4-b128") -> Costs:
    """What a profile of two Zen 4 cores measured, `scale` times as slow."""
    measured_points = {
        "int4-b128": {1: 84.56, 8: 232.74, 32: 780.45, 128: 3099.58},
        "int8-b128": {1: 152.41, 8: 282.01, 32: 784.77, 128: 2762.52},
    }
    points = [
        MatmulPoint(
            format=name,
            rows=rows,
            k=2048,
            n=2048,
            threads=2,
            microseconds=us * scale,
            gigamacs_per_second=rows * 2048 * 2048 / us / scale / 1000,
            noise=0.01,
        )
        for name, curve in measured_points.items()
        for rows, us in curve.items()
    ]
    return Costs(bandwidth=(BandwidthPoint(threads=2, gigabytes_per_second=41.6, noise=0.05),), matmul=tuple(points))


def on_measured(speeds: Speeds, offer: Offer = INT4, shape: ModelShape = LLAMA) -> Prediction | None:
    return predict(shape, offer.form(shape), Workload(4096, 128), speeds, None)


@pytest.mark.parametrize(
    ("name", "prefill", "alone", "together"), [("int4", 337, 56.8, 180), ("int4-fast", 389, 65.4, 216)]
)
def test_the_predictions_meet_what_bench_measured(name: str, prefill: float, alone: float, together: float) -> None:
    """README's figures of the 1B shape, from products of 4096 x 4096 that were measured on two Zen 5 cores."""
    table = {
        "int4-b128": (183, 276, 461, 813, 1536),
        "int4-b256": (164, 233, 385, 682, 1295),
        "int8-b128": (332, 432, 598, 957, 1650),
    }
    points = tuple(
        MatmulPoint(
            format=label,
            rows=rows,
            k=4096,
            n=4096,
            threads=2,
            microseconds=us,
            gigamacs_per_second=rows * 4096 * 4096 / us / 1000,
            noise=0.03,
        )
        for label, curve in table.items()
        for rows, us in zip((1, 4, 8, 16, 32), curve, strict=True)
    )
    found = Costs(bandwidth=(BandwidthPoint(threads=2, gigabytes_per_second=50, noise=0.05),), matmul=points)
    offer = next(offer for offer in offers() if offer.name == name)
    prediction = on_measured(measured(machine(cores=2), found), offer)
    assert prediction is not None
    assert prediction.prefill_rate.value == pytest.approx(prefill, rel=0.15)
    assert prediction.decode_rate(1).value == pytest.approx(alone, rel=0.15)
    assert prediction.decode_rate(8).value == pytest.approx(together, rel=0.15)


def test_measured_products_are_what_a_step_is_made_of() -> None:
    speeds = measured(machine(cores=2), costs())
    prediction = on_measured(speeds)
    assert prediction is not None
    layers, head = 973_078_528, 262_668_288
    products = (layers * 84.56 + head * 152.41) / 2048**2 / 1e6
    step = dict(prediction.steps)[1]
    # Attention, norms and the engine are the rest: some per cent in a model of this size.
    assert products < step.value < 1.15 * products
    assert step.low < step.value < step.high < 1.4 * step.value
    prompt = (layers * 3099.58 + head * 152.41) / 2048**2 / 1e6
    assert prompt < prediction.prefill.value < 1.2 * prompt


@given(st.floats(1.0, 50.0))
def test_slower_products_never_make_it_faster(scale: float) -> None:
    fast, slow = (on_measured(measured(machine(cores=2), costs(s))) for s in (1.0, scale))
    assert fast is not None
    assert slow is not None
    for count, seconds in fast.steps:
        assert dict(slow.steps)[count].value >= seconds.value * (1 - 1e-9)


def test_a_model_that_stays_in_the_cache_is_not_slower_for_it() -> None:
    small = replace(LLAMA, layers=2, hidden_size=256, intermediate_size=512, vocab_size=2048, heads=4, kv_heads=2)
    cache = (Cache(level=3, kind="unified", bytes=32 * MEBI, instances=1),)
    without = on_measured(measured(machine(cores=2), costs()), shape=small)
    within = on_measured(measured(machine(cores=2, caches=cache), costs()), shape=small)
    assert without is not None
    assert within is not None
    assert within.decode_rate(1).value > without.decode_rate(1).value


def with_layers(found: Costs, one: float, eight: float) -> Costs:
    """Whole layers that took so many microseconds, wherever their weights were."""
    points = [
        OverheadPoint(kind="layer", rows=rows, vocabulary=0, threads=2, microseconds=us, noise=0, cached=cached)
        for rows, us in ((1, one), (8, eight))
        for cached in (False, True)
    ]
    return found.model_copy(update={"overheads": tuple(points)})


def test_what_whole_layers_take_beyond_their_parts_is_made_up_for() -> None:
    speeds = measured(machine(cores=2), with_layers(costs(), 100.0, 300.0))
    parts = {
        rows: -beyond_the_parts(measured(machine(cores=2), with_layers(costs(), 0, 0)), rows, 1.0, cached=False)
        for rows in (1, 8)
    }
    for rows, whole in ((1, 100e-6), (8, 300e-6)):
        assert beyond_the_parts(speeds, rows, 1.0, cached=False) == pytest.approx(whole - parts[rows])
    plain, whole_layers = (on_measured(s) for s in (measured(machine(cores=2), costs()), speeds))
    assert plain is not None
    assert whole_layers is not None
    for rows, seconds in plain.steps:
        more = dict(whole_layers.steps)[rows].value - seconds.value
        assert more == pytest.approx(LLAMA.layers * ({1: 100e-6, 8: 300e-6}[rows] - parts[rows]))


def test_layers_that_took_no_time_still_leave_a_step_some() -> None:
    found = on_measured(measured(machine(cores=2), with_layers(costs(), 1e-9, 1e-9)))
    assert found is not None
    for _, seconds in found.steps:
        assert 0 < seconds.low <= seconds.value <= seconds.high


def test_parts_that_were_measured_too_slow_are_corrected_in_proportion() -> None:
    speeds = measured(machine(cores=2), with_layers(costs(), 1.0, 1.0))
    large, small = (beyond_the_parts(speeds, 1, layer, cached=False) for layer in (1.0, 1e-6))
    assert large < small < 0
    assert beyond_the_parts(measured(machine(cores=2), costs()), 1, 1.0, cached=False) == 0


@pytest.mark.parametrize(("sequences", "prompt", "answer"), [(1, 0, 128), (1, 512, 128), (8, 300, 64)])
def test_what_formats_do_not_change_is_the_same_in_all_of_them(sequences: int, prompt: int, answer: int) -> None:
    speeds = measured(machine(cores=2), costs())
    found = []
    for name in ("int4", "int8"):
        form = next(offer for offer in offers() if offer.name == name).form(LLAMA)
        known = beside_products(LLAMA, form, speeds, sequences, prompt, answer)
        assert known is not None
        assert known[1] is False  # no cache holds a milliard weights
        found.append(known[0])
    assert found[0] == pytest.approx(found[1])
    products = INT4.form(LLAMA)
    asked = predict(LLAMA, products, Workload(4096, prompt or 1), speeds, None)
    assert asked is not None
    assert 0 < found[0] < dict(asked.steps)[1].value + sequences * asked.prefill.value / answer
    w8a8 = next(offer for offer in offers() if offer.name == "w8a8").form(LLAMA)
    assert beside_products(LLAMA, w8a8, speeds, sequences, prompt, answer) is None


def test_a_format_that_was_not_measured_is_not_predicted() -> None:
    w8a8 = next(offer for offer in offers() if offer.name == "w8a8")
    assert on_measured(measured(machine(cores=2), costs()), offer=w8a8) is None
    with pytest.raises(ArtifactError, match="no measured costs"):
        measured(machine(), Costs())


def test_cores_without_a_product_of_bytes_are_told_of() -> None:
    pi = library.describe("raspberry-pi-4-4gb")
    speeds = described(pi, 4)
    assert "float32" in speeds.note
    assert described(library.describe("raspberry-pi-5-8gb"), 4).note == ""
    int8, int4 = (next(offer for offer in offers() if offer.name == name) for name in ("int8", "int4"))
    assert predicted(pi, LLAMA, int4).decode_rate(1).value > 2 * predicted(pi, LLAMA, int8).decode_rate(1).value


@given(shapes, forms, st.floats(10, 4000), st.floats(1, 64), st.floats(1, 10))
def test_a_larger_card_is_never_worse(
    shape: ModelShape, offer: Offer, bandwidth: float, gibibytes: float, factor: float
) -> None:
    form, workload = offer.form(shape), Workload.within(4096, shape)
    small = GraphicsCard(name="x", gibibytes=gibibytes, gigabytes_per_second=bandwidth, half_teraflops=10)
    large = GraphicsCard(
        name="x", gibibytes=gibibytes * factor, gigabytes_per_second=bandwidth * factor, half_teraflops=10 * factor
    )
    before, after = (predict_on_card(shape, form, workload, card) for card in (small, large))
    assert before.fits <= after.fits
    assert before.decode_rate(1).value <= after.decode_rate(1).value * (1 + 1e-9)
    for figure in figures(before):
        assert 0 < figure.low <= figure.value <= figure.high
