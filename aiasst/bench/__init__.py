"""How fast a model is on this machine, through the engine that run and chat use; and beside another runtime, if asked.

    work.py      what is measured: prompts and answers through the engine, with a stopwatch inside
    measure.py   how much of it, beside whom
    rounds.py    in turn, until the time is up
    fresh.py     a process of its own: time to load, peak memory
    figures.py   percentiles, best and median, shares, ratios, pure
    peers/       another runtime on the same weights, in its own process
    report.py    what came of it
    readings.py  energy, heat, clocks and throttling around the rounds
    tracing.py   the work once more with the profiler on (operators.py: where it goes; spans.py, chrome_trace.py: its trace)
    drawing.py   the picture

>>> from aiasst.bench import bench
>>> bench("story-int4", seconds=10).prefill.best
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from aiasst.artifacts.device import DeviceConfig, Hardware, load_device_config
from aiasst.artifacts.model_folder import ModelFolder
from aiasst.bench.chrome_trace import check_file as check_trace_file
from aiasst.bench.chrome_trace import write as write_trace
from aiasst.bench.figures import (
    Speed,
    bandwidth_share,
    bytes_per_token,
    overhead_share,
    paired_ratio,
    percentile,
    steady_speed,
)
from aiasst.bench.fresh import measure_fresh
from aiasst.bench.measure import Machine, Measured, measure
from aiasst.bench.peers import Peer, PeerModel, check_peer, started
from aiasst.bench.readings import Instruments
from aiasst.bench.report import Against, Decoding, Part, PeerDecoding, Report, Trace
from aiasst.bench.tracing import trace as take_apart
from aiasst.bench.work import Bench, shape_of
from aiasst.errors import UsageError
from aiasst.profile import check_machine, fitted, quick_config
from aiasst.progress import Progress, ProgressFn, silent
from aiasst.version import __version__

__all__ = ["PROMPT_TOKENS", "SEQUENCES", "PeerModel", "Report", "bench"]

PROMPT_TOKENS = 512
SEQUENCES = (1, 2, 4, 8, 16)


def bench(
    folder: str | Path | ModelFolder,
    config: str | Path | DeviceConfig | None = None,
    *,
    seconds: float = 60,
    prompt_tokens: int = PROMPT_TOKENS,
    sequences: Sequence[int] = SEQUENCES,
    against: PeerModel | None = None,
    trace: Path | None = None,
    force: bool = False,
    progress: ProgressFn = silent,
) -> Report:
    """Measure a model folder on this machine, as a device config says or, without one, as this machine is asked briefly.

    Args:
        folder: the model.
        config: provider, threads, affinity and memory ceiling are obeyed; `slots` is not, since it is what is tried out.
        seconds: all together; a slow model takes longer, because three rounds are made at least.
        prompt_tokens: of the prompt that is read; fewer where the context is shorter.
        sequences: numbers of answers at once; 1 is always among them.
        against: a peer to measure in the same rounds.
        trace: a file for a trace of some steps, which are made after the rounds, with the profiler on; beyond `seconds`.
        force: replace that file where there is one.
        progress: told of every measurement.

    Raises:
        UsageError: a number makes no sense, the peer's file is another model, or the trace may not be written there.
        ArtifactError: the folder or the config is missing or wrong, or no text generator.
        ResourceError: the model or the peer cannot be opened.
    """
    began = time.perf_counter()
    counts = tuple(sorted({1, *sequences}))
    _check(seconds, prompt_tokens, counts)
    if against is not None:
        check_peer(against)
    if trace is not None:
        check_trace_file(trace, force=force)
    model = folder if isinstance(folder, ModelFolder) else ModelFolder.open(folder)
    shape, device = shape_of(model), _device(model, config)
    hardware, threads = quick_config().hardware, device.decisions.threads.value
    machine = Machine(hardware, threads)
    instruments = Instruments(gpu=device.decisions.provider.value != "cpu")
    with _peer(against, model, threads) as peer:
        progress(Progress("fresh start", 0, 1, model.path.name))
        fresh = measure_fresh(model, device, min(prompt_tokens, shape.context_length - 2))
        progress(Progress("fresh start", 1, 1, f"{fresh.load_seconds:.2f} s"))
        opened = time.perf_counter()
        work = Bench(model, device, slots=max(counts), joules=instruments.joules)
        warm_seconds = time.perf_counter() - opened
        left = seconds - (time.perf_counter() - began)
        instruments.begin()
        measured = measure(
            work, machine.bandwidth, peer, prompt=prompt_tokens, counts=counts, seconds=left, progress=progress
        )
        readings = instruments.end(measured.prefill, measured.decode)
        against_peer = None if peer is None else _against(measured, peer)
        forms = work.forms
        # Its memory is free again before the model is opened once more.
        del work
    single = [second * 1000 for sample in measured.decode[1] for second in sample.steps]
    decode = tuple(_decoding(count, measured) for count in measured.amounts.counts)
    traced = None if trace is None else _traced(model, device, measured, trace, _name(hardware), progress)
    token_bytes, bandwidth = bytes_per_token(model.manifest.weights), max(measured.bandwidth)
    return Report(
        model=model.path.resolve().name,
        model_bytes=model.weight_bytes,
        machine=_name(hardware),
        provider=device.decisions.provider.value,
        threads=threads,
        onnxruntime=version("onnxruntime"),
        rounds=measured.rounds,
        seconds=time.perf_counter() - began,
        prompt_tokens=measured.amounts.prompt,
        decode_steps=measured.amounts.steps,
        prefill=Speed.of(_prefill(measured)),
        ttft_ms=statistics.median(sample.seconds for sample in measured.prefill) * 1000,
        inter_token_ms=tuple(single),
        inter_token_ms_p50=percentile(single, 0.5),
        inter_token_ms_p99=percentile(single, 0.99),
        decode=decode,
        left_out=tuple(count for count in counts if count not in measured.decode),
        load_seconds=fresh.load_seconds,
        load_seconds_warm=warm_seconds,
        peak_rss_bytes=fresh.peak_rss_bytes,
        token_bytes=token_bytes,
        bandwidth_bytes_per_second=bandwidth,
        bandwidth_share=bandwidth_share(token_bytes, decode[0].speed.best, bandwidth),
        cache_bytes=machine.cache_bytes,
        readings=readings,
        against=against_peer,
        forms=forms,
        trace=traced,
    )


def _check(seconds: float, prompt_tokens: int, counts: Sequence[int]) -> None:
    if not 0 < seconds < float("inf"):
        raise UsageError(f"{seconds:g} seconds is no time to measure in", "give a number above 0: --seconds 60")
    if prompt_tokens < 1:
        raise UsageError(f"a prompt of {prompt_tokens} tokens cannot be read", "give 1 or more: --prompt-tokens 512")
    if min(counts) < 1:
        raise UsageError(f"{min(counts)} sequences cannot be decoded", "give numbers from 1 on: --sequences 1,8")


def _device(model: ModelFolder, config: str | Path | DeviceConfig | None) -> DeviceConfig:
    if config is None:
        return quick_config(model)
    device = config if isinstance(config, DeviceConfig) else load_device_config(Path(config))
    check_machine(device)
    return fitted(device, model)


def _name(hardware: Hardware) -> str:
    return f"{hardware.cpu_model}, {hardware.usable_cores:g} cores"


@contextmanager
def _peer(wanted: PeerModel | None, model: ModelFolder, threads: int) -> Iterator[Peer | None]:
    if wanted is None:
        yield None
        return
    with started(wanted, shape_of(model), threads) as peer:
        yield peer


def _traced(
    model: ModelFolder, device: DeviceConfig, measured: Measured, file: Path, machine: str, progress: ProgressFn
) -> Trace:
    """Take some steps apart, write the trace, and set them beside those of the rounds."""
    facts = {
        "program": f"aiasst {__version__}",
        "model": model.path.resolve().name,
        "machine": machine,
        "threads": str(device.decisions.threads.value),
        "onnxruntime": version("onnxruntime"),
    }
    found = take_apart(model, device, measured.amounts, facts, progress)
    write_trace(file, found.document)
    parts = [
        Part("decode", count, count, steps, steps.milliseconds / 1000 / _step_seconds(count, measured))
        for count, steps in found.decode.items()
    ]
    prompt = statistics.median(sample.seconds for sample in measured.prefill)
    slowdown = found.prefill.milliseconds / 1000 / prompt
    parts.append(Part("prefill", 1, measured.amounts.prompt, found.prefill, slowdown))
    return Trace(str(file), tuple(parts))


def _step_seconds(count: int, measured: Measured) -> float:
    """The median of all steps."""
    return statistics.median(wall for sample in measured.decode[count] for wall in sample.steps)


def _prefill(measured: Measured) -> list[float]:
    """Tokens a second of each round."""
    return [sample.tokens / sample.seconds for sample in measured.prefill]


def _decode(count: int, measured: Measured) -> list[float]:
    """Tokens a second of each round."""
    return [steady_speed(count, sample.steps) for sample in measured.decode[count]]


def _decoding(count: int, measured: Measured) -> Decoding:
    samples = measured.decode[count]
    walls = [wall for sample in samples for wall in sample.steps]
    insides = [inside for sample in samples for inside in sample.inside]
    return Decoding(count, Speed.of(_decode(count, measured)), overhead_share(walls, insides))


def _against(measured: Measured, peer: Peer) -> Against:
    prefill = [measured.amounts.prompt / sum(steps) for steps in measured.peer_prefill]
    return Against(
        peer=peer.name,
        version=peer.version,
        model=peer.model,
        model_bytes=peer.model_bytes,
        prefill=Speed.of(prefill),
        prefill_ratio=paired_ratio(_prefill(measured), prefill),
        decode=tuple(_peer_decoding(count, measured) for count in measured.amounts.counts),
    )


def _peer_decoding(count: int, measured: Measured) -> PeerDecoding:
    theirs = [steady_speed(count, steps) for steps in measured.peer_decode[count]]
    return PeerDecoding(count, Speed.of(theirs), paired_ratio(_decode(count, measured), theirs))
