"""Advice: which form is taken and why, what bandwidth a speed needs, JSON with its stable names, decisions in sentences."""

from __future__ import annotations

import json

import pytest

from aiasst.artifacts.device import DeviceConfig
from aiasst.artifacts.model_folder import ModelFolder
from aiasst.artifacts.shipped import default_model
from aiasst.errors import ArtifactError, UnsupportedModelError, UsageError
from aiasst.profile import advise, report
from aiasst.profile.advise import (
    advise_on,
    advise_on_folder,
    described_machine,
    known_models,
    least_bandwidth,
    measured_machine,
)
from aiasst.profile.decide import decide
from aiasst.profile.explain import explain
from aiasst.profile.offers import offers, shape_of_folder
from tests.profile.test_decide import machine
from tests.profile.test_predict import costs

SHAPES = {known.name: known.shape for known in known_models()}
SMALL, MIDDLE, LARGE = (
    "HuggingFaceTB/SmolLM2-135M-Instruct", "meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.3-70B-Instruct",
)  # fmt: skip


def config(scale: float = 1.0) -> DeviceConfig:
    hardware, found = machine(cores=2), costs(scale)
    return DeviceConfig(
        aiasst_version="0",
        onnxruntime_version="0",
        created="2026-01-01T00:00:00+00:00",
        hardware=hardware,
        costs=found,
        decisions=decide(hardware, found),
    )


def test_what_is_fast_enough_is_as_accurate_as_can_be() -> None:
    advice = advise_on(SMALL, SHAPES[SMALL], described_machine("mac-mini-m4-16gb"))
    assert advice.best is not None
    assert advice.best.form.name == "int8"
    assert "most accurate" in advice.reason


def test_more_speed_costs_bits() -> None:
    machine = described_machine("mac-mini-m4-16gb")
    order = [offer.name for offer in offers()]
    taken = []
    for speed in (1.0, 12.0, 1000.0):
        best = advise_on(MIDDLE, SHAPES[MIDDLE], machine, speed=speed).best
        assert best is not None
        taken.append(order.index(best.form.name))
    assert taken == sorted(taken)
    assert taken[0] < taken[-1]
    # However much is wanted, two bits are no answer where more fit.
    assert "int2" not in (order[place] for place in taken)


def test_two_bits_are_taken_in_need_only() -> None:
    whole = described_machine("mac-mini-m4-16gb")
    sizes = {p.form.name: p.resident.value for p in advise_on(MIDDLE, SHAPES[MIDDLE], whole).predictions}
    tight = described_machine("mac-mini-m4-16gb", memory=int((sizes["int2"] + sizes["4 bits"]) / 2))
    advice = advise_on(MIDDLE, SHAPES[MIDDLE], tight)
    assert advice.best is not None
    assert (advice.best.form.name, advice.reason) == ("int2", "nothing larger fits; expect many mistakes")


def test_what_does_not_fit_is_not_advised() -> None:
    advice = advise_on(LARGE, SHAPES[LARGE], described_machine("raspberry-pi-5-8gb"))
    assert advice.best is None
    assert "no form" in advice.reason
    assert len(advice.predictions) == len(offers())


def test_without_costs_of_its_formats_nothing_is_said_to_fit_or_not() -> None:
    bare = config()
    strange = tuple(point.model_copy(update={"format": "fp32"}) for point in bare.costs.matmul)
    machine = measured_machine(bare.model_copy(update={"costs": bare.costs.model_copy(update={"matmul": strange})}))
    advice = advise_on(MIDDLE, SHAPES[MIDDLE], machine)
    # fp16 is computed as float32, and only Python makes it.
    assert [prediction.form.name for prediction in advice.predictions] == ["fp16"]
    assert advise.recommend((), 10.0)[0] is None
    assert "not measured" in advise.recommend((), 10.0)[1]


def test_a_graphics_card_is_told_of_and_not_used() -> None:
    found = described_machine("desktop-rtx-4090")
    advice = advise_on(MIDDLE, SHAPES[MIDDLE], found)
    assert advice.best is not None
    assert advice.on_card is not None
    assert advice.on_card.decode_rate(1).value > 3 * advice.best.decode_rate(1).value
    document = report.of_advice(advice, found, 10.0)
    assert document["with_graphics_card"]["card"] == "NVIDIA GeForce RTX 4090"
    assert "runs on the CPU" in document["with_graphics_card"]["note"]
    assert report.of_machine(found)["provider"] == "cpu"
    assert report.of_advice(advise_on(SMALL, SHAPES[SMALL], described_machine("n100-mini-pc-16gb")), found, 1.0)[
        "predicted"
    ]["fits"]


def test_the_least_bandwidth_reads_the_weights_so_many_times() -> None:
    shape = SHAPES[MIDDLE]
    form = next(offer for offer in offers() if offer.name == "int4").form(shape)
    one, ten = (least_bandwidth(shape, form, speed) for speed in (1.0, 10.0))
    assert ten == pytest.approx(10 * one)
    # Eight billion weights of four to five bits, and a cache of some tokens.
    assert 4.2e9 < one < 4.7e9


@pytest.mark.parametrize(
    ("context", "speed"), [(0, 10.0), (-1, 10.0), (4096, 0.0), (4096, float("inf")), (4096, float("nan"))]
)
def test_nothing_is_no_wish(context: int, speed: float) -> None:
    with pytest.raises(UsageError):
        advise_on(SMALL, SHAPES[SMALL], described_machine("n100-mini-pc-16gb"), context=context, speed=speed)


def test_the_stable_names() -> None:
    advice = advise_on(SMALL, SHAPES[SMALL], measured_machine(config()))
    assert advice.best is not None
    predicted = report.predicted(advice.best)
    assert json.loads(json.dumps(predicted)) == predicted
    names = {"prefill_tokens_per_second", "decode_tokens_per_second", "resident_bytes", "fits"}
    assert predicted.keys() == names | {"low", "high"}
    low, high = predicted["low"], predicted["high"]
    assert low.keys() == high.keys() == names
    assert predicted["decode_tokens_per_second"].keys() == {"1", "8"}
    for name in ("prefill_tokens_per_second", "resident_bytes", "fits"):
        assert low[name] <= predicted[name] <= high[name]
    for count, rate in predicted["decode_tokens_per_second"].items():
        assert low["decode_tokens_per_second"][count] <= rate <= high["decode_tokens_per_second"][count]


def test_formats_that_were_not_measured_are_left_out() -> None:
    advice = advise_on(SMALL, SHAPES[SMALL], measured_machine(config()))
    names = [prediction.form.name for prediction in advice.predictions]
    assert "int8" in names
    assert "int4" in names
    assert "w8a8" not in names
    with pytest.raises(ArtifactError, match="no measured costs"):
        measured_machine(config().model_copy(update={"costs": type(config().costs)()}))


def test_a_folder_is_predicted_in_the_form_it_has() -> None:
    folder = ModelFolder.open(default_model())
    advice = advise_on_folder(folder, measured_machine(config()))
    assert [prediction.form.name for prediction in advice.predictions] == ["int8"]
    assert advice.best is advice.predictions[0]
    assert advice.predictions[0].workload.context == 1024


def test_a_folder_that_writes_no_text_is_refused() -> None:
    manifest = ModelFolder.open(default_model()).manifest
    with pytest.raises(UnsupportedModelError, match="feature-extraction"):
        shape_of_folder(manifest.model_copy(update={"task": "feature-extraction"}))


def test_decisions_in_sentences_have_their_figures() -> None:
    told = dict(explain(config()))
    decisions = config().decisions
    for name, decision in (
        ("provider", decisions.provider), ("threads", decisions.threads), ("affinity", decisions.affinity),
        ("slots", decisions.slots), ("memory ceiling", decisions.memory_ceiling_bytes),
    ):  # fmt: skip
        assert decision.reason in told[name]
    assert "85 µs with 1 row" in told["slots"]
    assert "with 1 to 32 rows int4-b128 (85 to 780 µs; int8-b128 takes up to 1.8 times as long)" in told["formats"]
    assert "with 128 rows int8-b128 (2763 µs; int4-b128 takes up to 1.1 times as long)" in told["formats"]
    assert all(text.endswith(".") for text in told.values())


def test_noise_is_told_of() -> None:
    quiet = config()
    noisy = costs().model_copy(update={"matmul": tuple(p.model_copy(update={"noise": 0.6}) for p in costs().matmul)})
    assert "uncertain" not in dict(explain(quiet))["measured"]
    assert "8 of them are uncertain" in dict(explain(quiet.model_copy(update={"costs": noisy})))["measured"]
    assert "60%" in dict(explain(quiet.model_copy(update={"costs": noisy})))["measured"]


def test_without_measurements_it_says_so() -> None:
    bare = config().model_copy(update={"costs": type(config().costs)()})
    told = dict(explain(bare))
    assert "Nothing was measured" in told["measured"]
    assert "not measured" in told["formats"]


def test_reading_speed_is_what_the_command_takes_for_granted() -> None:
    from aiasst.cli.advise import command

    assert command.__defaults__ is not None
    assert advise.READING_SPEED in command.__defaults__
