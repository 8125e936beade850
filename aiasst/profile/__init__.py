"""What this machine is, what work costs on it, and what to do about it: a DeviceConfig, each decision with its reason.

    host.py       how probes ask the machine (or a tree of fixtures)
    probes/       what is here, one file a kind
    hardware.py   the probes' answers put together
    measure.py    bandwidth.py, products.py, attention.py, overheads.py, layers.py: what work costs; sampling.py: on a noisy host
    forms.py      a folder of two forms: which is faster for how many rows
    decide.py     hardware + costs (+ model) → decisions, pure
    explain.py    a device config in sentences
    tune.py       settings searched by how fast they are; tune_search.py by which library, tune_work.py with which work
    obey.py       a device config on the machine as it is now; drift.py: whether real work takes what it lets expect

and of a model that is not here yet:

    configurations.py → shapes.py → offers.py    config.json → numbers → the forms it could have
    library.py, devices/ → speeds.py             machines one does not have, and what any machine does in a second; fits.py: by
                                                 its measured points
    predict.py, graphics.py → advise.py → report.py

>>> from aiasst import profile
>>> profile(measure=False).decisions.threads.value
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from aiasst.artifacts.device import Costs, DeviceConfig, Hardware
from aiasst.artifacts.model_folder import Manifest, ModelFolder
from aiasst.errors import ArtifactError
from aiasst.profile.decide import ModelNeeds, decide, decide_twin
from aiasst.profile.hardware import read_hardware
from aiasst.profile.host import Host, this_host
from aiasst.profile.obey import Obeyed, named, obeyed
from aiasst.progress import Progress, ProgressFn, silent
from aiasst.version import __version__

if TYPE_CHECKING:
    from aiasst.profile.drift import DriftFn

__all__ = ["check_machine", "comparison", "fitted", "needs_of", "obey", "profile", "quick_config", "tuned"]


def profile(
    folder: str | Path | ModelFolder | None = None,
    *,
    measure: bool = True,
    full: bool = False,
    progress: ProgressFn = silent,
) -> DeviceConfig:
    """Look at this machine, measure it for less than a minute, and decide; for the model in `folder` if one is given.

    `full`: measure more shapes and longer, up to five minutes.

    Raises:
        ArtifactError: `folder` is no model folder.
    """
    model = folder if folder is None or isinstance(folder, ModelFolder) else ModelFolder.open(folder)
    progress(Progress("machine", 0, 1))
    hardware = read_hardware(this_host())
    progress(Progress("machine", 1, 1, hardware.cpu_model))
    costs = Costs()
    if measure:
        from aiasst.profile.measure import FULL, QUICK, measure_costs

        grid = FULL if full else QUICK
        costs = measure_costs(
            hardware, lambda found: decide(hardware, found).threads.value, grid=grid, progress=progress
        )
        if model is not None and model.manifest.twin is not None:
            from aiasst.profile.forms import measure_forms

            # Memory alone decides whether both are opened: products in general say less than these forms.
            room = decide(hardware, Costs(bandwidth=costs.bandwidth), needs_of(model))
            costs = measure_forms(model, costs, room, progress=progress)
    return _config(hardware, costs, model)


def quick_config(folder: ModelFolder | None = None, *, host: Host | None = None) -> DeviceConfig:
    """What run and chat obey without a device config: decided from what the system tells at once, in milliseconds."""
    hardware = read_hardware(host or this_host(), thorough=False)
    return _config(hardware, Costs(), folder)


def _config(hardware: Hardware, costs: Costs, folder: ModelFolder | None) -> DeviceConfig:
    """The document of what was found, with what follows from it; written now, by this version."""
    needs = None if folder is None else needs_of(folder)
    return DeviceConfig(
        aiasst_version=__version__,
        onnxruntime_version=version("onnxruntime"),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=None if needs is None else needs.name,
        hardware=hardware,
        costs=costs,
        decisions=decide(hardware, costs, needs),
    )


def fitted(config: DeviceConfig, folder: ModelFolder) -> DeviceConfig:
    """`config` with a decision on the folder's second form, where it was written for no model in particular, or another one."""
    needs = needs_of(folder)
    if not needs.twin_bytes or (config.decisions.twin is not None and config.model == needs.name):
        return config
    # What was measured of another folder's forms says nothing of these.
    costs = config.costs.model_copy(update={"forms": ()})
    decided = config.decisions
    twin = decide_twin(costs, decided.slots.value, decided.memory_ceiling_bytes.value, needs)
    return config.model_copy(update={"decisions": decided.model_copy(update={"twin": twin})})


def tuned(
    config: DeviceConfig,
    folder: ModelFolder,
    *,
    seconds: float,
    journal: Path | None = None,
    progress: ProgressFn = silent,
) -> tuple[DeviceConfig, str]:
    """`config` of this machine with the settings that are fastest for the model in `folder`, and a line on what came of it.

    Never worse than ONNX Runtime's own defaults, beyond the noise. With `journal`, a file, a later call goes on from there.

    Raises:
        ArtifactError: the folder is no text generator.
        ResourceError: Optuna is not installed, or memory is short.
    """
    from aiasst.profile import tune
    from aiasst.profile.tune_search import OptunaSearch
    from aiasst.profile.tune_work import Work

    hardware, decided = config.hardware, tune.setting_of(config.decisions)
    name = f"{folder.identity} on {hardware.machine_id}"
    search = OptunaSearch(tune.space_of(hardware), name=name, first=decided, journal=journal)
    found = tune.tune(
        search,
        Work(folder, config.decisions, hardware).measure,
        defaults=tune.runtime_defaults(hardware),
        decided=decided,
        seconds=seconds,
        progress=progress,
    )
    decisions = tune.with_tuned(config.decisions, found, hardware)
    return config.model_copy(update={"decisions": decisions}), f"{tune.in_words(found.setting)}: {tune.reason(found)}"


def obey(config: DeviceConfig, folder: ModelFolder, *, host: Host | None = None) -> Obeyed:
    """`config` for the model in `folder` as far as it is safe on this machine as it is now, and what to say of it."""
    here = host or this_host()
    found = obeyed(
        config, read_hardware(here, thorough=False), lambda: quick_config(folder, host=here), needs_of(folder)
    )
    return Obeyed(fitted(found.config, folder), found.remarks)


def comparison(folder: ModelFolder, config: DeviceConfig) -> DriftFn | None:
    """What compares decode steps with what `config` lets expect of the model in `folder`; None where it holds no costs.

    Raises:
        UnsupportedModelError: it generates no text.
    """
    from aiasst.profile.drift import drift, expected

    expect = expected(folder, config)
    return None if expect is None else partial(drift, expect)


def check_machine(config: DeviceConfig, *, host: Host | None = None) -> None:
    """Compare the machine that `config` was written on with this one, for what measures: run and chat `obey` instead.

    Raises:
        ArtifactError: it is another machine's; the message names both.
    """
    here, there = read_hardware(host or this_host(), thorough=False), config.hardware
    if here.machine_id == there.machine_id:
        return
    raise ArtifactError(
        f"this device config was written on another machine ({named(there)}); this one is {named(here)}",
        "write one for this machine: aiasst profile -o device.json",
    )


def needs_of(folder: ModelFolder) -> ModelNeeds:
    """What the model in `folder` asks of memory, by its manifest."""
    shape = folder.manifest.shape
    return ModelNeeds(
        name=folder.path.resolve().name,
        weight_bytes=folder.weight_bytes,
        cache_bytes_per_token=folder.cache_bytes_per_token,
        context_length=shape.context_length if shape is not None else 0,
        weight_format=_most_bytes(folder.manifest),
        twin_bytes=folder.twin_weight_bytes,
    )


def _most_bytes(manifest: Manifest) -> str:
    """The format that most bytes of the model's products are in."""
    sizes: dict[str, int] = {}
    for weight in manifest.weights.values():
        if weight.layer is not None and len(weight.shape) == 2:
            sizes[weight.format] = sizes.get(weight.format, 0) + weight.bytes
    return max(sizes, key=lambda label: sizes[label], default="")
