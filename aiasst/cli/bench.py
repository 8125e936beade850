"""`aiasst bench`: how fast a model is on this machine, and beside another runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aiasst.cli import output, trace_view
from aiasst.cli.options import Config, Folder, Force, Json, Quiet
from aiasst.errors import UsageError

if TYPE_CHECKING:
    from aiasst.bench import PeerModel, Report
    from aiasst.bench.figures import Speed
    from aiasst.bench.readings import Change, Readings

EXAMPLES = (
    "aiasst bench story-int4 --config device.json\n\n"
    "aiasst bench qwen3-int4 --seconds 120 --plot speed.png\n\n"
    "aiasst bench qwen3-int4 --trace steps.json\n\n"
    "aiasst bench llama-int4 --against llama.cpp --peer-model llama-q4.gguf --peer-python other/bin/python"
)

_BAR = 40
"""Characters of the longest bar."""
_NOISY = 0.2
"""From here on the figures are said to be uncertain."""
_PEER = "Against another runtime"


def command(
    folder: Folder,
    config: Config = None,
    seconds: Annotated[
        float, typer.Option("--seconds", metavar="S", help="Time for everything; a slow model takes longer.")
    ] = 60,
    prompt_tokens: Annotated[
        int, typer.Option("--prompt-tokens", metavar="N", help="Tokens of the prompt that is read.")
    ] = 512,
    sequences: Annotated[
        str, typer.Option("--sequences", metavar="N,N", help="Numbers of answers at once.")
    ] = "1,2,4,8,16",
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE.png", help="Draw the figures.")] = None,
    trace: Annotated[
        Path | None,
        typer.Option("--trace", metavar="FILE.json", help="Take some steps apart, for Chrome and Perfetto as well."),
    ] = None,
    against: Annotated[
        str | None, typer.Option("--against", metavar="NAME", help="llama.cpp", rich_help_panel=_PEER)
    ] = None,
    peer_model: Annotated[
        Path | None,
        typer.Option("--peer-model", metavar="FILE", help="The same weights for it (GGUF).", rich_help_panel=_PEER),
    ] = None,
    peer_python: Annotated[
        Path | None,
        typer.Option(
            "--peer-python",
            metavar="PATH",
            help="The Python that has its package, if not this one.",
            rich_help_panel=_PEER,
        ),
    ] = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure how fast a model is here, through the engine of run and chat.

    Everything is measured in turn, round after round, because machines stall.
    The best is what the machine can do; where the median lies far below,
    others were at work on it.

    Another runtime can be measured in the same rounds, with as many threads.

    --trace makes some steps more with ONNX Runtime's profiler on, says which
    operators they go to, and writes a trace. The speeds are those without it.
    """
    from aiasst.bench import bench

    peer = _peer(against, peer_model, peer_python)
    if plot is not None:
        from aiasst.artifacts.picture import check_picture

        check_picture(plot)
    with output.progress(quiet=quiet) as progress:
        report = bench(
            folder, config, seconds=seconds, prompt_tokens=prompt_tokens, sequences=_numbers(sequences), against=peer,
            trace=trace, force=force, progress=progress,
        )  # fmt: skip
    if plot is not None:
        from aiasst.bench.drawing import draw

        draw(report, plot)
    if json:
        output.document(document(report))
    else:
        _show(report)
    if not quiet:
        _remark(report, config, plot, trace)


command.__name__ = "bench"


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"'{text}' is no list of numbers", "write it like this: --sequences 1,8") from None


def _peer(name: str | None, file: Path | None, python: Path | None) -> PeerModel | None:
    from aiasst.bench.peers import PEERS, PeerModel, how_to_make

    if name is None:
        if file is not None or python is not None:
            raise UsageError("a peer's model or Python is named, but no peer", f"say which one: --against {PEERS[0]}")
        return None
    if file is None:
        raise UsageError(f"nothing is named that {name} could run", how_to_make(name))
    return PeerModel(name, file, python)


def document(report: Report) -> dict[str, Any]:
    """What `--json` says; the names stay."""
    decode = {str(one.sequences): one for one in report.decode}
    return {
        "model": report.model,
        "model_bytes": report.model_bytes,
        "machine": report.machine,
        "provider": report.provider,
        "threads": report.threads,
        "onnxruntime": report.onnxruntime,
        "rounds": report.rounds,
        "seconds": round(report.seconds, 1),
        "prompt_tokens": report.prompt_tokens,
        "decode_steps": report.decode_steps,
        "prefill_tokens_per_second": round(report.prefill.best, 2),
        "decode_tokens_per_second": {count: round(one.speed.best, 2) for count, one in decode.items()},
        "median": {
            "prefill_tokens_per_second": round(report.prefill.median, 2),
            "decode_tokens_per_second": {count: round(one.speed.median, 2) for count, one in decode.items()},
        },
        "noise": round(report.noise, 3),
        "ttft_ms": round(report.ttft_ms, 2),
        "inter_token_ms_p50": round(report.inter_token_ms_p50, 3),
        "inter_token_ms_p99": round(report.inter_token_ms_p99, 3),
        "load_seconds": round(report.load_seconds, 3),
        "load_seconds_warm": round(report.load_seconds_warm, 3),
        "peak_rss_bytes": report.peak_rss_bytes,
        "weight_bytes_per_token": report.token_bytes,
        "bandwidth_bytes_per_second": round(report.bandwidth_bytes_per_second),
        "bandwidth_share": round(report.bandwidth_share, 3),
        "engine_overhead_share": {count: round(one.overhead_share, 4) for count, one in decode.items()},
        "forms": report.forms or None,
        **_readings_document(report.readings),
        "trace": None if report.trace is None else trace_view.document(report.trace),
        "against": _peer_document(report),
    }


def _readings_document(readings: Readings) -> dict[str, Any]:
    """Energy, heat and clocks; null where nothing could be read, with the reason."""
    energy, throttling = readings.energy, readings.throttling
    decode = {str(count): joules for count, joules in energy.decode.items()}
    known = not energy.reason
    return {
        "energy": {
            "of": energy.scope or None,
            "joules_per_token": {
                "prefill": _rounded(energy.prefill),
                "decode": {count: _rounded(joules) for count, joules in decode.items()},
            }
            if known
            else None,
            "tokens_per_joule": {
                "prefill": _inverse(energy.prefill),
                "decode": {count: _inverse(joules) for count, joules in decode.items()},
            }
            if known
            else None,
            "reason": energy.reason or None,
        },
        "temperature_celsius": _change_document(readings.temperature_celsius, 1),
        "frequency_mhz": _change_document(readings.frequency_hertz, 1e-6),
        "throttling": {
            "seen": throttling.seen,
            "events": throttling.events,
            "flags": list(throttling.flags),
            "reason": throttling.reason or None,
        },
    }


def _change_document(change: Change, unit: float) -> dict[str, Any]:
    before, after = (None if value is None else round(value * unit, 1) for value in (change.before, change.after))
    return {"before": before, "after": after, "of": change.scope or None, "reason": change.reason or None}


def _rounded(joules: float | None) -> float | None:
    return None if joules is None else float(f"{joules:.4g}")


def _inverse(joules: float | None) -> float | None:
    return None if joules is None else float(f"{1 / joules:.4g}")


def _peer_document(report: Report) -> dict[str, Any] | None:
    if (peer := report.against) is None:
        return None
    return {
        "peer": peer.peer,
        "version": peer.version,
        "model": peer.model,
        "model_bytes": peer.model_bytes,
        "prefill_ratio": round(peer.prefill_ratio, 3),
        "decode_ratio": {str(one.sequences): round(one.ratio, 3) for one in peer.decode},
        "prefill_tokens_per_second": round(peer.prefill.best, 2),
        "decode_tokens_per_second": {str(one.sequences): round(one.speed.best, 2) for one in peer.decode},
    }


# ---------------------------------------------------------------------- for people


def _show(report: Report) -> None:
    columns, rows = _speeds(report)
    caption = (
        f"Best of {report.rounds} rounds (median, {report.noise:.0%} lower at most); engine: its own share of a step"
    )
    if report.against is not None:
        caption += "; ratio: the rounds' median"
    title = f"{report.model} on {report.machine}, {report.threads} thread{'s' if report.threads > 1 else ''}"
    output.table(title, columns, rows, right=columns[1:], caption=caption)
    output.picture("Decode by number of answers at once, tokens a second", _bars(report))
    output.section("One answer", _facts(report))
    output.section("\nEnergy and heat", _readings(report.readings))
    if report.trace is not None:
        trace_view.show(report.trace)


def _speeds(report: Report) -> tuple[list[str], list[list[str]]]:
    columns = ["", "tok/s", "(median)", "engine"]
    rows = [[f"read a prompt of {report.prompt_tokens}", *_cells(report.prefill), ""]]
    rows += [
        [f"decode, {one.sequences} at once", *_cells(one.speed), f"{one.overhead_share:.1%}"] for one in report.decode
    ]
    if (peer := report.against) is not None:
        columns += [peer.peer, "(median)", "ratio"]
        rows[0] += [*_cells(peer.prefill), f"{peer.prefill_ratio:.2f}"]
        for row, theirs in zip(rows[1:], peer.decode, strict=True):
            row += [*_cells(theirs.speed), f"{theirs.ratio:.2f}"]
    return columns, rows


def _cells(speed: Speed) -> tuple[str, str]:
    digits = 0 if speed.best >= 1000 else 1
    return f"{speed.best:.{digits}f}", f"({speed.median:.{digits}f})"


def _bars(report: Report) -> list[str]:
    """A bar a number of answers, the peer's below ours."""
    theirs = {one.sequences: one.speed.best for one in report.against.decode} if report.against else {}
    longest = max(*theirs.values(), *(one.speed.best for one in report.decode), 0.0)
    lines = []
    for one in report.decode:
        lines.append(_bar(str(one.sequences), one.speed.best, longest, "cyan"))
        if one.sequences in theirs:
            lines.append(_bar("", theirs[one.sequences], longest, "yellow"))
    if report.against is not None:
        lines += [
            "",
            f"    [cyan]█[/] aiasst  [yellow]█[/] {output.plain(report.against.peer)} {report.against.version}",
        ]
    return lines


def _bar(name: str, speed: float, longest: float, colour: str) -> str:
    eighths = max(1, round(speed / longest * _BAR * 8))
    bar = "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
    return f"{name:>4} [{colour}]{bar}[/] {speed:.{0 if speed >= 1000 else 1}f}"


def _facts(report: Report) -> list[tuple[str, str]]:
    facts = [
        ("first token", f"after {report.ttft_ms:.1f} ms, for a prompt of {report.prompt_tokens} tokens"),
        (
            "next tokens",
            f"every {report.inter_token_ms_p50:.2f} ms; 99 of 100 within {report.inter_token_ms_p99:.2f} ms",
        ),
        ("bandwidth", _bandwidth(report)),
        ("load", f"{report.load_seconds:.2f} s the first time, {report.load_seconds_warm:.2f} s again"),
        ("memory", f"{output.human_bytes(report.peak_rss_bytes)} at most, files included"),
    ]
    if (peer := report.against) is not None:
        sizes = f"{output.human_bytes(peer.model_bytes)}; this folder {output.human_bytes(report.model_bytes)}"
        facts.append(("peer", f"{peer.peer} {peer.version}, {peer.model}, {sizes}"))
    return facts


def _readings(readings: Readings) -> list[tuple[str, str]]:
    heat, clock = readings.temperature_celsius, readings.frequency_hertz
    return [
        ("energy", _energy(readings)),
        ("temperature", _changed(heat, lambda celsius: f"{celsius:.0f} °C")),
        ("clock", _changed(clock, lambda hertz: f"{hertz / 1e9:.2f} GHz")),
        ("throttling", _throttling(readings)),
    ]


def _energy(readings: Readings) -> str:
    energy = readings.energy
    if energy.reason:
        return f"not known: {energy.reason}"
    told = {"read": energy.prefill} | {f"written, {count} at once": joules for count, joules in energy.decode.items()}
    words = [f"{_joules(joules)} a token {name}" for name, joules in told.items() if joules is not None]
    return f"{', '.join(words)}; {energy.scope}, with whatever else ran there"


def _joules(joules: float) -> str:
    return (
        f"{joules:.2f} J ({1 / joules:.2f} tokens a joule)"
        if joules >= 0.1
        else f"{joules * 1000:.2g} mJ ({1 / joules:.3g} tokens a joule)"
    )


def _changed(change: Change, words: Callable[[float], str]) -> str:
    if change.before is None or change.after is None:
        return f"not known: {change.reason}"
    return f"{words(change.before)} before, {words(change.after)} after ({change.scope})"


def _throttling(readings: Readings) -> str:
    throttling = readings.throttling
    if throttling.reason:
        return f"not known: {throttling.reason}"
    seen = [f"{throttling.events} events in the meantime"] if throttling.events else []
    return ", ".join([*seen, *throttling.flags]) or "none seen"


def _bandwidth(report: Report) -> str:
    read = f"{output.human_bytes(report.token_bytes)} of weights a token"
    memory = f"this memory can deliver ({report.bandwidth_bytes_per_second / 1e9:.1f} GB/s)"
    words = f"{report.bandwidth_share:.0%} of what {memory}: {read}"
    if report.bandwidth_share > 1:
        words = f"more than {memory}: {read}, from caches"
    if report.fits_cache:
        words += (
            f"; they fit into the cache of {output.human_bytes(report.cache_bytes)}, so that memory is not their limit"
        )
    return words


def _remark(report: Report, config: Path | None, plot: Path | None, trace: Path | None) -> None:
    source = (
        f"as {output.plain(config)} says"
        if config
        else "as this machine was asked briefly (--config FILE obeys a profile)"
    )
    output.note(
        f"Run {source}: provider {report.provider}, threads {report.threads}, onnxruntime {report.onnxruntime}."
    )
    if report.forms:
        output.note(f"{output.plain(report.forms)}.")
    if report.left_out:
        counts = ", ".join(map(str, report.left_out))
        output.note(f"Left out: {counts} answers at once, which the memory ceiling or the context has no room for.")
    if report.noise > _NOISY:
        output.note(
            f"The rounds differ by up to {report.noise:.0%}: others are at work here. More --seconds, or another hour."
        )
    if report.readings.throttling.seen:
        output.note("The machine was throttled: cooler, or with a stronger supply, it would be faster.")
    if plot is not None:
        output.note(f"Drawn: {output.plain(plot)}")
    if trace is not None:
        output.note(f"Trace: {output.plain(trace)}; open it at chrome://tracing or with Perfetto.")
