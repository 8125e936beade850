"""Which form of a model to take on a machine, and which models it is good for. Composes; the arithmetic is predict's.

A form is advised by two questions: does it fit, and does it decode as fast as one reads? Of those that do, the most accurate.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from aiasst.artifacts.device import DeviceConfig, Hardware
from aiasst.artifacts.model_folder import Manifest, ModelFolder
from aiasst.errors import UsageError
from aiasst.profile import library
from aiasst.profile.configurations import shape_of
from aiasst.profile.decide import decide
from aiasst.profile.graphics import predict_on_card
from aiasst.profile.library import GraphicsCard
from aiasst.profile.offers import Form, form_of, offers, shape_of_folder
from aiasst.profile.predict import SHORT_PAST, Prediction, Workload, beside_products, predict
from aiasst.profile.shapes import ModelShape
from aiasst.profile.speeds import Speeds, described, measured

READING_SPEED = 10.0
"""Tokens a second that one sequence should have where nobody says: somewhat faster than people read."""
USUAL_CONTEXT = 4096
_NEAR_FASTEST = 0.8
"""Of the speed of the fastest form: a more accurate one is not given up for less than the rest."""
_ONLY_IN_NEED = frozenset({"int2"})
"""Forms that lose so much that they are advised only where nothing else fits."""


@dataclass(frozen=True)
class Machine:
    """What is advised for."""

    title: str
    hardware: Hardware
    threads: int
    ceiling_bytes: int
    """For weights, cache and program together."""
    speeds: Speeds
    graphics: GraphicsCard | None = None


@dataclass(frozen=True)
class KnownModel:
    """A model that many use."""

    name: str
    """Its id on the hub."""
    source: str
    """Where its configuration stands."""
    shape: ModelShape


@dataclass(frozen=True)
class Advice:
    """One model on one machine."""

    name: str
    shape: ModelShape
    predictions: tuple[Prediction, ...]
    """The most accurate form first; only those whose cost is known."""
    best: Prediction | None
    """The form to take; None: none fits."""
    reason: str
    """Why it is that one, or why it is none."""
    on_card: Prediction | None = None
    """The best form on the machine's graphics card, in a runtime that uses it: this program does not."""


def described_machine(name: str, *, memory: int | None = None) -> Machine:
    """A machine of the library, of which `memory` bytes may be taken (None: what it decides).

    Raises:
        ArtifactError: there is no such machine.
    """
    description = library.describe(name)
    hardware = library.hardware_of(description)
    decisions = decide(hardware)
    threads = decisions.threads.value
    return Machine(
        title=description.title,
        hardware=hardware,
        threads=threads,
        ceiling_bytes=memory or decisions.memory_ceiling_bytes.value,
        speeds=described(description, threads),
        graphics=description.graphics,
    )


def measured_machine(config: DeviceConfig, *, memory: int | None = None) -> Machine:
    """The machine of a device config.

    Raises:
        ArtifactError: it holds no measurements.
    """
    hardware = config.hardware
    return Machine(
        title=f"{hardware.cpu_model}, {config.decisions.threads.value} threads",
        hardware=hardware,
        threads=config.decisions.threads.value,
        ceiling_bytes=memory or config.decisions.memory_ceiling_bytes.value,
        speeds=measured(hardware, config.costs),
    )


def advise_on(
    name: str,
    shape: ModelShape,
    machine: Machine,
    *,
    context: int = USUAL_CONTEXT,
    speed: float = READING_SPEED,
    forms: Sequence[Form] | None = None,
) -> Advice:
    """What `shape` takes on `machine` in each form, and which to take.

    Args:
        name: of the model, for the answer.
        shape: of the model.
        machine: where it is to run.
        context: tokens of a sequence; the model's own context is the most.
        speed: tokens a second of one sequence that are wanted.
        forms: to choose from; None: all that quantize can make.

    Raises:
        UsageError: a context or a speed of nothing.
    """
    if context < 1 or not 0 < speed < float("inf"):
        raise UsageError(
            f"a context of {context} tokens at {speed:g} tokens a second is nothing to plan for",
            "for example --context 4096 --speed 10",
        )
    workload = Workload.within(context, shape)
    chosen = [offer.form(shape) for offer in offers()] if forms is None else forms
    made = (predict(shape, form, workload, machine.speeds, machine.ceiling_bytes) for form in chosen)
    predictions = tuple(prediction for prediction in made if prediction is not None)
    best, reason = recommend(predictions, speed)
    card = machine.graphics
    on_card = [] if card is None else [predict_on_card(shape, p.form, workload, card) for p in predictions]
    return Advice(name, shape, predictions, best, reason, recommend(on_card, speed)[0])


def recommend(predictions: Sequence[Prediction], speed: float) -> tuple[Prediction | None, str]:
    """The form to take of `predictions` (the most accurate first), and why."""
    if not predictions:
        return None, "the costs of its formats were not measured: aiasst profile -o device.json, on a quiet machine"
    # What only Python makes (fp16) is shown and not advised: it is int8 that is as accurate, at half the size.
    candidates = [p for p in predictions if p.form.options] or list(predictions)
    fitting = [p for p in candidates if p.fits]
    if not fitting:
        return None, "no form of it fits into the memory"
    good = [p for p in fitting if p.form.name not in _ONLY_IN_NEED]
    if not good:
        return fitting[0], "nothing larger fits; expect many mistakes"
    fast = [p for p in good if p.decode_rate(1).value >= speed]
    if fast:
        return fast[0], f"the most accurate that fits and decodes {speed:g} tokens a second"
    most = max(p.decode_rate(1).value for p in good)
    near = next(p for p in good if p.decode_rate(1).value >= _NEAR_FASTEST * most)
    return near, f"none that fits decodes {speed:g} tokens a second; this is the fastest, or near it and more accurate"


def advise_on_folder(
    folder: ModelFolder, machine: Machine, *, context: int = USUAL_CONTEXT, speed: float = READING_SPEED
) -> Advice:
    """The same for a model that is converted already: the form that it has.

    Raises:
        UnsupportedModelError: it generates no text.
    """
    shape = shape_of_folder(folder.manifest)
    name, form = folder.path.resolve().name, form_of(folder.manifest, shape)
    return advise_on(name, shape, machine, context=context, speed=speed, forms=(form,))


def beside_formats(
    manifest: Manifest, config: DeviceConfig, sequences: int, prompt: int, answer: int
) -> tuple[float, bool] | None:
    """Seconds a token of a converted decoder that its formats do not change; see `predict.beside_products`.

    Eight bits a weight stand for whatever will be chosen. None: it is no decoder, or nothing of the kind was measured.
    """
    if manifest.shape is None or manifest.task != "text-generation":
        return None
    shape = shape_of_folder(manifest)
    (form,) = (offer.form(shape) for offer in offers() if offer.name == "int8")
    return beside_products(shape, form, measured(config.hardware, config.costs), sequences, prompt, answer)


def least_bandwidth(shape: ModelShape, form: Form, speed: float) -> float:
    """Bytes a second that memory must really give for `speed` tokens a second of one sequence, if nothing else took time."""
    return speed * (form.read_bytes + SHORT_PAST * shape.cache_bytes_per_token)


@cache
def known_models() -> tuple[KnownModel, ...]:
    """Common models of 0.1 to 70 billion parameters, the smallest first."""
    listed: list[Mapping[str, Any]] = json.loads(
        (resources.files("aiasst.profile") / "models.json").read_text(encoding="utf-8")
    )
    models = [KnownModel(one["id"], one["source"], shape_of(one["config"])) for one in listed]
    return tuple(sorted(models, key=lambda model: model.shape.parameters))
