"""How advice before a download is asked for and looks: what profile and advise share. Predicts nothing itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiasst.artifacts.model_folder import MANIFEST_NAME, ModelFolder
from aiasst.cli import output

if TYPE_CHECKING:
    from aiasst.artifacts.device import DeviceConfig
    from aiasst.convert.sources.peek import Peek
    from aiasst.profile.advise import Advice, Machine
    from aiasst.profile.predict import Prediction
    from aiasst.profile.ranges import Range


def wanted(model: str, revision: str | None) -> ModelFolder | Peek:
    """What MODEL names: a model folder where there is one, or a checkpoint that is only looked at."""
    from aiasst.convert.sources.peek import peek

    path = Path(model).expanduser()
    looks_local = path.is_absolute() or model.startswith(".") or model.count("/") != 1
    if (path / MANIFEST_NAME).exists() or (path.is_dir() and not (path / "config.json").exists()):
        return ModelFolder.open(path)
    if looks_local and not path.exists() and path.suffix != ".json":
        return ModelFolder.open(path)
    return peek(model, revision=revision)


def machine_called(device: str, *, memory: int | None = None) -> Machine:
    """The machine of a device config (a path to a .json file), or one of the library."""
    from aiasst.artifacts.device import load_device_config
    from aiasst.profile.advise import described_machine, measured_machine

    if device.endswith(".json"):
        return measured_machine(load_device_config(Path(device)), memory=memory)
    return described_machine(device, memory=memory)


def machine_of(config: DeviceConfig, *, memory: int | None = None) -> Machine:
    """The machine that `config` was just written for."""
    from aiasst.errors import UsageError
    from aiasst.profile.advise import measured_machine

    if not config.costs.matmul:
        raise UsageError(
            "speeds are predicted from measurements, and --quick takes none",
            "leave out --quick, or name a machine: --device NAME",
        )
    return measured_machine(config, memory=memory)


def show_model(model: ModelFolder | Peek, machine: Machine, context: int, *, json: bool, quiet: bool) -> None:
    """Every format of one model on one machine, which to take, and the commands to go on with."""
    from aiasst.profile import advise, report

    if isinstance(model, ModelFolder):
        advice = advise.advise_on_folder(model, machine, context=context)
        commands = [f"aiasst chat {output.plain(model.path)}"]
    else:
        from aiasst.profile.configurations import shape_of

        shape = shape_of(model.config, weight_bytes=model.weight_bytes)
        advice = advise.advise_on(model.name, shape, machine, context=context)
        commands = _commands(model, advice)
    if json:
        document = report.of_advice(advice, machine, advise.READING_SPEED)
        output.document({"machine": report.of_machine(machine), **document, "commands": commands})
        return
    first = advice.predictions[0].workload if advice.predictions else None
    title = f"{advice.name}: {advice.shape.parameters / 1e9:.2f} billion parameters, on {machine.title}"
    rows = [_row(prediction, recommended=prediction is advice.best) for prediction in advice.predictions]
    columns = ["format", "on disk", "memory", "fits", "TTFT", "tokens/s", "full", "8 at once"]
    caption = (
        f"memory with a context of {first.context:,} tokens; TTFT: to the first token of a prompt of {first.prompt}; tokens/s: "
        "of one sequence that begins (from–to); full: at the end of its context; 8 at once: of eight together, that begin"
        if first
        else ""
    )
    output.table(title, columns, rows, right=columns[1:3], caption=caption)
    if not quiet:
        _say(advice, machine, commands)


def predicted_of(folder: object, config: DeviceConfig, context: int) -> dict[str, Any] | None:
    """The stable figures of a model folder on the measured machine; None where there is no folder, no decoder or no measurement."""
    from aiasst.profile import advise, report

    if not isinstance(folder, ModelFolder) or not config.costs.matmul or folder.manifest.shape is None:
        return None
    if folder.manifest.task != "text-generation":
        return None
    advice = advise.advise_on_folder(folder, advise.measured_machine(config), context=context)
    return report.predicted(advice.predictions[0]) if advice.predictions else None


def show_predicted(predicted: dict[str, Any] | None) -> None:
    """The stable figures as a section."""
    if predicted is None:
        return
    low, high, decode = predicted["low"], predicted["high"], "decode_tokens_per_second"
    rows = [
        (
            f"decode, {count} sequence{'s' if count != '1' else ''}",
            f"{_figure(value)} tokens/s ({_figure(low[decode][count])}–{_figure(high[decode][count])})",
        )
        for count, value in predicted[decode].items()
    ]
    name = "prefill_tokens_per_second"
    rows.insert(0, ("prefill", f"{_figure(predicted[name])} tokens/s ({_figure(low[name])}–{_figure(high[name])})"))
    rows.append(("memory", f"{output.human_bytes(predicted['resident_bytes'])} with one sequence of the whole context"))
    output.section("\nPredicted", rows)


def rate(found: Range) -> str:
    """A rate without what it may be."""
    return _figure(found.value)


def spread(found: Range) -> str:
    """A rate with what it may be: 12 (7–16)."""
    return f"{_figure(found.value)} ({_figure(found.low)}–{_figure(found.high)})"


def seconds(found: Range) -> str:
    """A time, in the unit that reads best."""
    return f"{found.value * 1000:.0f} ms" if found.value < 0.995 else f"{found.value:.1f} s"


def seconds_spread(found: Range) -> str:
    """A time with what it may be: 1.0 s (0.6–1.8)."""
    factor, digits = (1, 1) if found.value >= 0.995 else (1000, 0)
    return f"{seconds(found)} ({found.low * factor:.{digits}f}–{found.high * factor:.{digits}f})"


def _row(prediction: Prediction, *, recommended: bool) -> list[str]:
    sure = prediction.surely_fits if prediction.fits else not prediction.may_fit
    fits = ("yes" if prediction.fits else "no") if sure else ("nearly" if prediction.fits else "hardly")
    return [
        prediction.form.name + (" *" if recommended else ""),
        output.human_bytes(prediction.form.disk_bytes),
        output.human_bytes(prediction.resident.value),
        fits,
        seconds_spread(prediction.first_token),
        spread(prediction.decode_rate(1)),
        rate(prediction.full_rate(1)),
        spread(prediction.decode_rate(8)),
    ]


def _say(advice: Advice, machine: Machine, commands: list[str]) -> None:
    origin = "this machine's measurements" if machine.speeds.measured else "its specification, so the range is wide"
    output.note(f"\nPredicted from {origin}." + (f" Note: {machine.speeds.note}." if machine.speeds.note else ""))
    if advice.best is None:
        output.note(f"Nothing to take: {output.plain(advice.reason)}. Other models: aiasst advise")
        return
    output.note(f"* Take {advice.best.form.name}: {output.plain(advice.reason)}.")
    say_of_card(machine)
    output.note("Go on with:")
    for line in commands:
        output.note(f"  {output.plain(line)}")


def say_of_card(machine: Machine) -> None:
    """That the graphics card lies idle, where there is one."""
    if machine.graphics is not None:
        output.note(
            f"The {output.plain(machine.graphics.name)} is not used: this program runs on the CPU. What a runtime that uses it "
            "could reach is in --json."
        )


def _commands(model: Peek, advice: Advice) -> list[str]:
    """From the checkpoint to the first answer."""
    if advice.best is None:
        return []
    path = Path(model.name)
    folder = path.parent if path.suffix == ".json" else path
    name = folder.name or folder.resolve().name
    small = f"{name}-{advice.best.form.name.replace(' ', '')}"
    return [
        f"aiasst convert {folder if path.suffix == '.json' else model.name} -o {name}-onnx",
        f"aiasst quantize {name}-onnx {advice.best.form.options} -o {small}",
        f"aiasst chat {small}",
    ]


def _figure(value: float) -> str:
    """Two or three digits, as much as such a figure is worth."""
    if value >= 999.5:
        return f"{value / 1000:.1f}k"
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"
