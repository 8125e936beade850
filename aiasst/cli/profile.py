"""`aiasst profile`: what this machine is, what work costs on it, and what run and chat should do about it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aiasst.cli import output
from aiasst.cli.options import USUAL_CONTEXT, Context, Device, Force, Json, Quiet

if TYPE_CHECKING:
    from aiasst.artifacts.device import Cache, Costs, Decisions, DeviceConfig, Hardware

EXAMPLES = (
    "aiasst profile\n\naiasst profile story-int4 -o device.json\n\n"
    "aiasst profile story-int4 --tune --seconds 60 -o device.json\n\naiasst profile Qwen/Qwen3-0.6B --context 8192\n\n"
    "aiasst profile Qwen/Qwen3-4B --device raspberry-pi-5-8gb"
)

_Rows = list[tuple[str, str]]
_NAMES = 4
"""Sensors of a source and kind that are named."""


def command(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[DIR | MODEL]",
            help="Decide for this model folder; or say of a checkpoint (folder, config.json, hub id) what it would take.",
        ),
    ] = None,
    destination: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the device config here (device.json).")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Measure nothing: look, and decide from that.")] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Measure more shapes and longer: some minutes instead of less than one.")
    ] = False,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune", help="Try threads, pinning, spinning and chunks with this model folder, and take the fastest."
        ),
    ] = False,
    seconds: Annotated[float, typer.Option("--seconds", metavar="N", min=1.0, help="Time for --tune.")] = 120.0,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say in sentences why each decision is what it is.")
    ] = False,
    device: Device = None,
    context: Context = USUAL_CONTEXT,
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="REV", help="Branch, tag or commit of a hub id.")
    ] = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Look at this machine, measure it for some seconds, and decide how to run models on it.

    The device config has the hardware, the measurements, and each decision
    with its reason. run and chat obey it: --config device.json. Without -o
    it is shown and not written.

    Of a checkpoint it says before the download what each format would take:
    size, memory, and the speed to expect; only its config.json is fetched.
    """
    from aiasst.artifacts.device import refuse_existing_config, save_device_config
    from aiasst.artifacts.model_folder import ModelFolder
    from aiasst.cli import advice_view
    from aiasst.errors import UsageError
    from aiasst.profile import profile, tuned

    if tune and (device is not None or model is None):
        raise UsageError("--tune tries settings with a model folder on this machine", "aiasst profile DIR --tune")
    if quick and full:
        raise UsageError("--quick measures nothing, --full measures more", "give one of the two")
    _check(model, destination, quick=quick, device=device, explain=explain, revision=revision)
    if destination is not None:
        refuse_existing_config(destination, force=force)
    if device is not None and model is not None:
        machine = advice_view.machine_called(device)
        advice_view.show_model(advice_view.wanted(model, revision), machine, context, json=json, quiet=quiet)
        return
    wanted = None if model is None else advice_view.wanted(model, revision)
    if device is not None:
        from aiasst.artifacts.device import load_device_config

        config = load_device_config(Path(device))
    else:
        folder = wanted if isinstance(wanted, ModelFolder) else None
        with output.progress(quiet=quiet) as progress:
            if tune and folder is None:
                raise UsageError(f"--tune needs a model folder, {model} is none", "convert it first: aiasst convert")
            config = profile(folder, measure=not quick, full=full, progress=progress)
            if tune and folder is not None:
                journal = None if destination is None else destination.with_name(f"{destination.name}.tuning")
                try:
                    config, came = tuned(config, folder, seconds=seconds, journal=journal, progress=progress)
                except KeyboardInterrupt:
                    if journal is not None and not quiet:
                        output.note(
                            f"Settings tried so far are in {output.plain(journal)}; the same command goes on from there."
                        )
                    raise
                if not quiet:
                    output.note(f"Tuned: {output.plain(came)}")
    if destination is not None:
        save_device_config(destination, config)
    if wanted is not None and not isinstance(wanted, ModelFolder):
        advice_view.show_model(wanted, advice_view.machine_of(config), context, json=json, quiet=quiet)
        return
    predicted = advice_view.predicted_of(wanted, config, context)
    if json:
        output.document(
            config.model_dump(mode="json")
            | ({} if predicted is None else {"predicted": predicted})
            | ({"explained": dict(_explained(config))} if explain else {})
        )
    elif explain:
        output.section("Why", _explained(config))
    else:
        _show(config)
        advice_view.show_predicted(predicted)
    if not quiet and device is None:
        _say_what_next(model, destination)


def _check(
    model: str | None, destination: Path | None, *, quick: bool, device: str | None, explain: bool, revision: str | None
) -> None:
    """Options that go together."""
    from aiasst.errors import UsageError

    if device is not None and (destination is not None or quick):
        raise UsageError(
            "--device is about a machine that is known, so that nothing is measured or written",
            "leave out --device to measure this one, or -o and --quick",
        )
    if device is not None and model is None and not (explain and device.endswith(".json")):
        raise UsageError(
            "--device needs a model to say what it would take there",
            f"aiasst profile MODEL --device {device}, or aiasst advise --device {device} for a list of models",
        )
    if model is None and revision is not None:
        raise UsageError("--revision belongs to a hub id", "aiasst profile MODEL --revision REV")


command.__name__ = "profile"


def _show(config: DeviceConfig) -> None:
    output.section("Machine", _machine(config.hardware))
    if config.hardware.sensors:
        output.section("\nReadings of energy, heat and clocks", _readings(config.hardware))
    if config.costs.bandwidth:
        output.section("\nMeasured", _bandwidth(config.costs))
    if config.costs.matmul:
        columns, rows, caption = _products(config.costs)
        output.table("", columns, rows, right=columns[1:], caption=caption)
    if others := _others(config.costs):
        output.section("\nMeasured beside products", others)
    if config.costs.forms:
        output.section("\nTwo forms of the model", _forms(config.costs))
    title = f"for {config.model}" if config.model else "for any model (name a model folder to fit it)"
    output.section(f"\nDecided {title}", _decisions(config.decisions))


def _explained(config: DeviceConfig) -> _Rows:
    from aiasst.profile.explain import explain

    return explain(config)


def _say_what_next(folder: str | None, destination: Path | None) -> None:
    model = output.plain(folder or "DIR")
    if destination is None:
        given = f" {model}" if folder else ""
        output.note(f"\nNothing was written. Keep it:  aiasst profile{given} -o device.json")
    else:
        output.note(
            f"\nWritten to {output.plain(destination)}. Use it:  aiasst chat {model} --config {output.plain(destination)}"
        )


def _machine(hardware: Hardware) -> _Rows:
    loading = [provider.name for provider in hardware.providers if provider.available]
    missing = [provider.name for provider in hardware.providers if not provider.available]
    rows = [
        ("CPU", f"{hardware.cpu_model} ({hardware.architecture}, {hardware.system})"),
        ("cores", _cores(hardware)),
        ("instructions", " ".join(hardware.instruction_sets) or "not known"),
        ("caches", " · ".join(_cache(cache) for cache in hardware.caches) or "not known"),
        ("memory", _memory(hardware)),
        ("accelerators", ", ".join(_accelerators(hardware)) or "none found"),
        ("providers", f"{', '.join(loading) or 'none'} (not here: {', '.join(missing) or 'none'})"),
    ]
    if len(hardware.numa) > 1:
        nodes = " · ".join(f"{len(n.cpus)} threads, {output.human_bytes(n.memory_bytes)}" for n in hardware.numa)
        rows.insert(4, ("NUMA nodes", nodes))
    return rows


def _readings(hardware: Hardware) -> _Rows:
    """A row a source: what it tells, or why it does not."""
    rows: dict[str, list[str]] = {}
    there = [sensor for sensor in hardware.sensors if sensor.available]
    for source, kind in dict.fromkeys((sensor.source, sensor.kind) for sensor in there):
        names = [sensor.name for sensor in there if (sensor.source, sensor.kind) == (source, kind)]
        more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
        rows.setdefault(source, []).append(f"{kind} of {', '.join(names[:_NAMES])}{more}")
    for sensor in hardware.sensors:
        if not sensor.available:
            rows.setdefault(sensor.source, []).append(f"missing: {sensor.reason}")
    return [(source.replace("_", " "), "; ".join(told)) for source, told in rows.items()]


def _cores(hardware: Hardware) -> str:
    words = f"{hardware.physical_cores} physical, {hardware.logical_cores} logical"
    if len(hardware.core_groups) > 1:
        words += f" ({', '.join(f'{group.physical_cores} {group.kind}' for group in hardware.core_groups)})"
    if hardware.cpu_quota is not None:
        words += f"; a quota allows {hardware.cpu_quota:g} of them at a time"
    if hardware.usable_cores < hardware.logical_cores:
        words += f"; usable: {hardware.usable_cores:g}"
    return words


def _cache(cache: Cache) -> str:
    kind = {"data": "d", "instruction": "i", "unified": ""}[cache.kind]
    size = cache.bytes // cache.instances
    each = f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"
    return f"L{cache.level}{kind} {each}" + (f" x {cache.instances}" if cache.instances > 1 else "")


def _memory(hardware: Hardware) -> str:
    words = f"{output.human_bytes(hardware.memory_total_bytes)}, {output.human_bytes(hardware.memory_free_bytes)} free"
    if hardware.memory_limit_bytes < hardware.memory_total_bytes:
        words += f"; the container may take {output.human_bytes(hardware.memory_limit_bytes)}"
    return words


def _accelerators(hardware: Hardware) -> list[str]:
    return [
        a.name + (f" ({output.human_bytes(a.memory_bytes)})" if a.memory_bytes else "") for a in hardware.accelerators
    ]


def _bandwidth(costs: Costs) -> _Rows:
    points = " · ".join(
        f"{p.gigabytes_per_second:.1f} GB/s with {p.threads} thread{'s' if p.threads > 1 else ''}"
        for p in costs.bandwidth
    )
    return [("memory read", points)]


def _products(costs: Costs) -> tuple[list[str], list[list[str]], str]:
    """Columns, rows and caption: formats down, rows of activations across, microseconds inside."""
    from aiasst.artifacts.cost_table import usual_products

    products = usual_products(costs)
    sizes = sorted({point.rows for point in products})
    times = {(point.format, point.rows): point.microseconds for point in products}
    best = {rows: min(us for (_, r), us in times.items() if r == rows) for rows in sizes}
    labels = list(dict.fromkeys(point.format for point in products))
    table = [[label, *(_cell(times.get((label, rows)), best[rows]) for rows in sizes)] for label in labels]
    first = products[0]
    caption = f"microseconds for rows x {first.k} times {first.k} x {first.n}, {first.threads} threads; * the fastest"
    noisy = sorted(point.noise for point in costs.matmul)
    caption += f"; noise {noisy[len(noisy) // 2]:.0%}, at worst {noisy[-1]:.0%}"
    columns = ["format", *(f"{rows} row{'s' if rows > 1 else ''}" for rows in sizes)]
    return columns, table, caption


def _others(costs: Costs) -> _Rows:
    """Attention, overheads and loading, a line each."""
    rows = []
    heads = max((point.heads for point in costs.attention), default=0)
    for kind in dict.fromkeys(point.cache for point in costs.attention):
        told = [p for p in costs.attention if p.cache == kind and p.heads == heads]
        one = [f"{p.microseconds:.0f} µs after {p.past} tokens" for p in told if p.rows == p.new_tokens == 1]
        words = f"a layer of {heads} heads, one new token: {', '.join(one) or 'not measured'}"
        rows.append((f"attention, {kind}", words))
    nodes = [f"{p.microseconds:.1f} µs with {_rows(p.rows)}" for p in costs.overheads if p.kind == "node"]
    if nodes:
        rows.append(("a norm", ", ".join(nodes)))
    steps = [p for p in costs.overheads if p.kind == "step"]
    if steps:
        scores = max(point.vocabulary for point in steps)
        told_steps = [f"{p.microseconds:.0f} µs with {_rows(p.rows)}" for p in steps if p.vocabulary == scores]
        rows.append(("engine", f"a step around the model: {', '.join(told_steps)} of {scores} scores"))
    for loaded in costs.loading[:1]:
        rows.append((
            "loading", f"{loaded.load_gigabytes_per_second:.2f} GB/s of {loaded.format}, with packing "
            f"{loaded.packed_gigabytes_per_second:.2f} GB/s",
        ))  # fmt: skip
    return rows


def _rows(count: int) -> str:
    return f"{count} row{'s' if count > 1 else ''}"


def _forms(costs: Costs) -> _Rows:
    return [
        (
            f"{point.tokens} rows",
            f"{point.first_milliseconds:.2f} ms, w8a8 {point.twin_milliseconds:.2f} ms "
            f"({point.first_milliseconds / point.twin_milliseconds:.2f} times as fast)",
        )
        for point in costs.forms
    ]


def _cell(microseconds: float | None, best: float) -> str:
    if microseconds is None:
        return "-"
    return f"{'* ' if microseconds == best else ''}{microseconds:.0f}"


def _decisions(decisions: Decisions) -> list[tuple[str, str, str]]:
    pinned, heat, power = decisions.affinity.value, decisions.temperature_limit_celsius, decisions.power_limit_watts
    limits = [
        (name, "none" if limit.value is None else f"{limit.value:g} {unit}", limit.reason)
        for name, limit, unit in (("temperature limit", heat, "°C"), ("power limit", power, "W"))
    ]
    rows = [
        ("provider", decisions.provider.value, decisions.provider.reason),
        ("threads", str(decisions.threads.value), decisions.threads.reason),
        ("affinity", "none" if pinned is None else ",".join(map(str, pinned)), decisions.affinity.reason),
        ("spinning", "on" if decisions.spinning.value else "off", decisions.spinning.reason),
        ("chunk", str(decisions.chunk.value), decisions.chunk.reason),
        ("slots", str(decisions.slots.value), decisions.slots.reason),
        (
            "memory ceiling",
            output.human_bytes(decisions.memory_ceiling_bytes.value),
            decisions.memory_ceiling_bytes.reason,
        ),
        (
            "inter-token latency",
            f"{decisions.inter_token_latency_ms.value} ms",
            decisions.inter_token_latency_ms.reason,
        ),
        *limits,
    ]
    if (twin := decisions.twin) is not None:
        rows.append(("second form", f"from {twin.from_rows} rows" if twin.use else "not used", twin.reason))
    return rows
