"""The catalogue of figures, and their text for Prometheus. Counts nothing and asks nobody: a reading in, text out.

Names and units: https://prometheus.io/docs/practices/naming/; text: https://prometheus.io/docs/specs/om/open_metrics_spec/.
What cannot be read is absent, never 0. Labels are what the reading has; whoever made it has bounded them.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import accumulate
from typing import get_args

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from aiasst.engine.engine import EngineStats
from aiasst.serve.service import Kind, ModelState, State
from aiasst.serve.telemetry.host import HostReading
from aiasst.serve.telemetry.tallies import BOUNDS, Spread, Tally
from aiasst.version import __version__

OPENMETRICS = "application/openmetrics-text"


@dataclass(frozen=True)
class Reading:
    """All that is known at one moment."""

    device: str
    """The machine, in words."""
    models: Sequence[ModelState]
    tallies: Mapping[str, Tally]
    """Of each model."""
    requests: Mapping[tuple[str, str, str], int]
    """(Model, caller, how it ended)."""
    tokens: Mapping[tuple[str, str, str], int]
    """(Model, caller, "prompt" or "completion")."""
    refusals: Mapping[tuple[str, str, str], int]
    """(Model, caller, reason)."""
    host: HostReading
    utilization: float | None
    """0 to 1."""
    lost_lines: int | None
    """Of the log."""


def text(reading: Reading, accept: str, process: Collector) -> tuple[bytes, str]:
    """All figures, those of `process` included, in the format that an Accept header asks for, and its content type."""
    registry = CollectorRegistry()
    registry.register(_Families(reading))
    registry.register(process)
    named = {part.partition(";")[0].strip().lower() for part in accept.split(",")}
    # Of the header only this much is handed on: the library takes its parameters on trust, and a wrong one would be an error.
    write, content_type = choose_encoder(OPENMETRICS if OPENMETRICS in named else "")
    return write(registry), content_type


def process_collector() -> Collector:
    """Figures of this process: memory, CPU seconds, open files, start; under the names that all exporters give them."""
    return ProcessCollector(registry=None)


@dataclass(frozen=True)
class _Figure:
    """A family of one number for each model."""

    name: str
    """Without its unit, and without _total."""
    help: str
    unit: str = ""
    counter: bool = False


def _total(name: str, told: str, unit: str = "") -> _Figure:
    """A figure that only rises."""
    return _Figure(name, told, unit, counter=True)


_LE = (*map(repr, BOUNDS), "+Inf")

_SPREADS: dict[Kind, tuple[tuple[_Figure, Callable[[Tally], Spread]], ...]] = {
    "text-generation": (
        (
            _Figure("aiasst_time_to_first_token", "From a request's arrival to its first token."),
            lambda t: t.first_token,
        ),
        (_Figure("aiasst_inter_token_latency", "From one token of an answer to the next."), lambda t: t.next_token),
        (
            _Figure("aiasst_request_duration", "From the arrival of a request for text to its end."),
            lambda t: t.duration,
        ),
    ),
    "encoder": (
        (_Figure("aiasst_embedding_duration", "From the arrival of texts to their vectors."), lambda t: t.embedding),
    ),
}
"""Of models of each kind."""

_TALLIES: dict[Kind, tuple[tuple[_Figure, Callable[[Tally], float | None]], ...]] = {
  "text-generation": (
    (_total("aiasst_admitted_requests", "Requests for text that were admitted."), lambda t: t.begun),
    (_total("aiasst_cached_prompt_tokens", "Tokens of prompts that were in the cache already."), lambda t: t.cached_tokens),
    (_total("aiasst_drafted_tokens", "Tokens that were drafted and verified together."), lambda t: t.drafted_tokens),
    (_total("aiasst_accepted_tokens", "Drafted tokens that answers have."), lambda t: t.accepted_tokens),
  ),
  "encoder": ((_total("aiasst_embedded_texts", "Texts that became vectors."), lambda t: t.embedded_texts),),
}  # fmt: skip

_MODELS: tuple[tuple[_Figure, Callable[[ModelState], float | None]], ...] = (
    (_Figure("aiasst_running_requests", "Requests under way."), lambda m: m.running),
    (_Figure("aiasst_waiting_requests", "Requests in line."), lambda m: m.waiting),
    (_Figure("aiasst_model_weight", "Weights of the model.", "bytes"), lambda m: m.weight_bytes),
    (_Figure("aiasst_model_context_tokens", "Tokens that prompt and answer may have together."), lambda m: m.context_length),
)  # fmt: skip

_ENGINES: tuple[tuple[_Figure, Callable[[EngineStats], float | None]], ...] = (
    (_total("aiasst_engine_steps", "Runs of the session."), lambda s: s.steps),
    (_total("aiasst_engine_decode_steps", "Runs that went on with answers under way."), lambda s: s.decode_steps),
    (_total("aiasst_engine_decoded_tokens", "Tokens of these runs; by the runs, the batch size."), lambda s: s.decoded_tokens),
    (_total("aiasst_engine_prefill_tokens", "Tokens of prompts that were computed."), lambda s: s.prefill_tokens),
    (_total("aiasst_engine_cached_tokens", "Tokens of prompts that were taken from the cache."), lambda s: s.cached_tokens),
    (_total("aiasst_engine_prefill", "Time in runs over prompts.", "seconds"), lambda s: s.prefill_seconds),
    (_total("aiasst_engine_decode", "Time in runs over answers.", "seconds"), lambda s: s.decode_seconds),
    (_total("aiasst_engine_paced", "Pauses for a limit of heat or power.", "seconds"), lambda s: s.paced_seconds),
    (_Figure("aiasst_engine_waiting_requests", "Requests in the engine's own line."), lambda s: s.waiting),
    (_Figure("aiasst_batch_rows_limit", "Answers that are decoded at once, at most, by what steps cost."), lambda s: s.rows),
    (_Figure("aiasst_cache_slots", "Rows of the cache."), lambda s: s.slots),
    (_Figure("aiasst_cache_capacity_tokens", "Tokens that all rows of the cache have room for."), lambda s: s.slots * s.capacity),
    (_Figure("aiasst_cache_active_tokens", "Tokens of requests under way that are in the cache."), lambda s: s.active_tokens),
    (_Figure("aiasst_cache", "Keys and values of the rows.", "bytes"), lambda s: s.cache_bytes),
    (_Figure("aiasst_prefix_store", "Keys and values kept beside the rows.", "bytes"), lambda s: s.prefix_bytes),
    (_Figure("aiasst_memory_ceiling", "What the process may take; absent without a limit.", "bytes"), lambda s: s.ceiling_bytes),
)  # fmt: skip

_HOST: tuple[tuple[_Figure, Callable[[HostReading], float | None]], ...] = (
    (_Figure("aiasst_host_temperature", "The hottest place of the processor.", "celsius"), lambda h: h.celsius),
    (_Figure("aiasst_host_power", "Power since the reading before.", "watts"), lambda h: h.watts),
    (_total("aiasst_host_energy", "Energy since the start.", "joules"), lambda h: h.joules),
    (_total("aiasst_host_throttle_events", "Times that the processor was throttled."), lambda h: h.throttle_events),
)  # fmt: skip


class _Families:
    """A reading as families of samples."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def collect(self) -> Iterator[Metric]:
        """Every family that has a sample."""
        return (family for family in self._families() if family.samples)

    def _families(self) -> Iterator[Metric]:
        reading = self._reading
        yield InfoMetricFamily(
            "aiasst_build",
            "Versions, and the machine.",
            value={
                "version": __version__,
                "onnxruntime": version("onnxruntime"),
                "python": platform.python_version(),
                "device": reading.device,
            },
        )
        yield from self._of_requests()
        for kind in get_args(Kind):
            tallies = {model.name: reading.tallies[model.name] for model in reading.models if model.kind == kind}
            for figure, spread_of in _SPREADS[kind]:
                yield _histogram(figure, {model: spread_of(tally) for model, tally in tallies.items()})
            for figure, count_of in _TALLIES[kind]:
                yield _by_model(figure, {model: count_of(tally) for model, tally in tallies.items()})
        yield from self._of_models()
        for figure, of_host in _HOST:
            yield _alone(figure, of_host(reading.host))
        yield _alone(_Figure("aiasst_utilization_ratio", "0.3 CPU + 0.2 memory + 0.5 I/O wait."), reading.utilization)
        lost = _total("aiasst_log_lines_lost", "Lines that the log could not take.")
        yield _alone(lost, reading.lost_lines)

    def _of_requests(self) -> Iterator[Metric]:
        reading = self._reading
        for name, told, label, counts in (
            ("aiasst_requests", "Requests that ended.", "outcome", reading.requests),
            ("aiasst_tokens", "Tokens of prompts and answers of requests that ended.", "kind", reading.tokens),
            ("aiasst_refusals", "Requests that were not served.", "reason", reading.refusals),
        ):
            family = CounterMetricFamily(name, told, labels=("model", "caller", label))
            for labels, count in counts.items():
                family.add_metric(labels, count)
            yield family

    def _of_models(self) -> Iterator[Metric]:
        models = self._reading.models
        info = InfoMetricFamily("aiasst_model", "Models that can be asked.", labels=("model",))
        state = GaugeMetricFamily("aiasst_model_state", "1 for the state that it is in.", labels=("model", "state"))
        for model in models:
            info.add_metric([model.name], {"kind": model.kind, "task": model.task})
            for name in get_args(State):
                state.add_metric([model.name, name], float(model.state == name))
        yield info
        yield state
        for figure, of_model in _MODELS:
            yield _by_model(figure, {model.name: of_model(model) for model in models})
        loaded = {model.name: model.stats for model in models if model.stats is not None}
        for figure, of_engine in _ENGINES:
            yield _by_model(figure, {name: of_engine(stats) for name, stats in loaded.items()})


def _family(figure: _Figure, labels: Sequence[str]) -> CounterMetricFamily | GaugeMetricFamily:
    if figure.counter:
        return CounterMetricFamily(figure.name, figure.help, labels=labels, unit=figure.unit)
    return GaugeMetricFamily(figure.name, figure.help, labels=labels, unit=figure.unit)


def _by_model(figure: _Figure, values: Mapping[str, float | None]) -> Metric:
    family = _family(figure, ("model",))
    for model, value in values.items():
        if value is not None:
            family.add_metric([model], value)
    return family


def _alone(figure: _Figure, value: float | None) -> Metric:
    family = _family(figure, ())
    if value is not None:
        family.add_metric([], value)
    return family


def _histogram(figure: _Figure, spreads: Mapping[str, Spread]) -> Metric:
    family = HistogramMetricFamily(figure.name, figure.help, labels=("model",), unit="seconds")
    for model, spread in spreads.items():
        up_to = map(float, accumulate(spread.counts))
        family.add_metric([model], list(zip(_LE, up_to, strict=True)), spread.total)
    return family
