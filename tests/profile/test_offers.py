"""Forms of a model: bytes on disk to the byte where a folder is there to compare with, bits of a plan, memory."""

from __future__ import annotations

import json

import pytest

from aiasst.artifacts.model_folder import ModelFolder
from aiasst.artifacts.recipe import WeightFormat
from aiasst.artifacts.shipped import default_model
from aiasst.profile.advise import known_models
from aiasst.profile.configurations import shape_of
from aiasst.profile.offers import Offer, form_of, matrix_bytes, offers, shape_of_folder
from aiasst.profile.shapes import ModelShape

BY_NAME = {offer.name: offer for offer in offers()}
LLAMA = next(model.shape for model in known_models() if model.name == "meta-llama/Llama-3.2-1B-Instruct")


@pytest.fixture(scope="module")
def story() -> ModelFolder:
    return ModelFolder.open(default_model())


def story_shape(story: ModelFolder) -> ModelShape:
    return shape_of(json.loads((story.path / "config.json").read_text()))


def test_size_on_disk_is_that_of_the_real_folder(story: ModelFolder) -> None:
    predicted = BY_NAME["int8"].form(story_shape(story)).disk_bytes
    assert predicted == pytest.approx(story.weight_bytes, rel=2e-3)


def test_a_folder_has_the_form_that_its_recipe_offered(story: ModelFolder) -> None:
    shape = shape_of_folder(story.manifest)
    offered, real = BY_NAME["int8"].form(shape), form_of(story.manifest, shape)
    assert shape.parameters == story_shape(story).parameters
    assert real.disk_bytes == pytest.approx(offered.disk_bytes)
    assert real.read_bytes == pytest.approx(offered.read_bytes)
    assert real.embedding == ()


@pytest.mark.parametrize(
    ("spec", "bits"),
    [
        (WeightFormat(format="fp32"), 32), (WeightFormat(format="fp16"), 16),
        (WeightFormat(format="int8", block_size=128), 8.25), (WeightFormat(format="int4", block_size=128), 4.25),
        (WeightFormat(format="int4", block_size=32), 5.0), (WeightFormat(format="int2", block_size=64), 2.5),
    ],
)  # fmt: skip
def test_bits_with_their_scales(spec: WeightFormat, bits: float) -> None:
    assert matrix_bytes(spec, 4096, 1024) * 8 / (4096 * 1024) == pytest.approx(bits)


def test_blocks_are_whole_and_channels_have_a_scale() -> None:
    assert matrix_bytes(WeightFormat(format="int4", block_size=128), 130, 10) == 10 * (256 / 2 + 2 * 4)
    assert matrix_bytes(WeightFormat(format="int4", block_size=128, zero_point=True), 256, 1) == 128 + 8 + 1
    assert matrix_bytes(WeightFormat(format="w8a8"), 100, 10) == 1040


@pytest.mark.parametrize("bits", [4.0, 5.5, 6.0])
def test_a_plan_has_its_bits(bits: float) -> None:
    offer = Offer("plan", BY_NAME["6 bits"].recipes, "", bits=bits)
    form = offer.form(LLAMA)
    small = 4 * LLAMA.small_parameters
    weights = sum(part.bytes for part in (*form.layers, *form.head, *form.embedding)) + small
    assert 8 * weights / LLAMA.parameters == pytest.approx(bits, rel=1e-3)


def test_a_plan_beyond_what_there_is_becomes_the_nearest() -> None:
    sizes = [Offer("plan", BY_NAME["6 bits"].recipes, "", bits=bits).form(LLAMA).disk_bytes for bits in (1.0, 20.0)]
    assert sizes == [BY_NAME["int2"].form(LLAMA).disk_bytes, BY_NAME["int8"].form(LLAMA).disk_bytes]


@pytest.mark.parametrize("model", known_models(), ids=lambda model: model.name)
def test_fewer_bits_are_never_larger(model: object) -> None:
    shape = model.shape  # type: ignore[attr-defined]
    order = ("fp16", "int8", "6 bits", "int4", "4 bits", "int2")
    disk = [BY_NAME[name].form(shape).disk_bytes for name in order]
    memory = [BY_NAME[name].form(shape).memory_bytes.value for name in order]
    assert disk[0] > disk[1] > disk[3] > disk[5]
    # A plan lies between its neighbours, or is the nearer of the ends.
    assert disk[1] >= disk[2] >= disk[5]
    assert disk[1] >= disk[4] >= disk[5]
    assert disk[2] >= disk[4]
    assert memory[0] > memory[1] > memory[3] > memory[5]


def test_every_offer_that_is_made_by_a_command_says_so() -> None:
    assert [offer.name for offer in offers() if not offer.options] == ["fp16"]
    assert all(offer.options.split()[0] in ("--recipe", "--target-bpw") for offer in offers() if offer.options)
