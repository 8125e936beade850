import asyncio
import itertools
import re

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from aiasst.engine.text import Usage
from aiasst.sensors.reading import Found, Sensor
from aiasst.serve.telemetry.metrics import Metrics, router
from aiasst.serve.telemetry.tallies import BOUNDS
from aiasst.serve.watch import Watch
from tests.serve.states import TALKER, StatedService, metrics_of, unloaded

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(metrics: Metrics) -> Samples:
    text, _ = asyncio.run(metrics.text(""))
    return {(s.name, frozenset(s.labels.items())): s.value for f in parse(text.decode()) for s in f.samples}


def value(found: Samples, name: str, **labels: str) -> float | None:
    return found.get((name, frozenset(labels.items())))


def told(metrics: Metrics) -> None:
    watch: Watch = metrics
    watch.began("talker", "ann")
    watch.first_token("talker", 0.03)
    for _ in range(3):
        watch.next_token("talker", 0.004)
    watch.ended("talker", "ann", "stop", Usage(12, 8, 4, 2, 1), 0.05)
    watch.began("talker", "ann")
    watch.ended("talker", "ann", None, None, 0.5)
    watch.embedded("reader", "", 3, 33, 0.02)


def test_what_was_told_is_counted() -> None:
    metrics = metrics_of(StatedService(), "ann")
    told(metrics)
    found = samples(metrics)
    assert value(found, "aiasst_requests_total", model="talker", caller="ann", outcome="stop") == 1
    assert value(found, "aiasst_requests_total", model="talker", caller="ann", outcome="failed") == 1
    assert value(found, "aiasst_requests_total", model="reader", caller="", outcome="embedded") == 1
    assert value(found, "aiasst_admitted_requests_total", model="talker") == 2
    assert value(found, "aiasst_tokens_total", model="talker", caller="ann", kind="prompt") == 12
    assert value(found, "aiasst_tokens_total", model="talker", caller="ann", kind="completion") == 4
    assert value(found, "aiasst_tokens_total", model="reader", caller="", kind="prompt") == 33
    assert value(found, "aiasst_cached_prompt_tokens_total", model="talker") == 8
    assert value(found, "aiasst_drafted_tokens_total", model="talker") == 2
    assert value(found, "aiasst_accepted_tokens_total", model="talker") == 1
    assert value(found, "aiasst_embedded_texts_total", model="reader") == 3
    assert value(found, "aiasst_time_to_first_token_seconds_bucket", model="talker", le="0.02") == 0
    assert value(found, "aiasst_time_to_first_token_seconds_bucket", model="talker", le="0.03") == 1
    assert value(found, "aiasst_inter_token_latency_seconds_count", model="talker") == 3
    assert value(found, "aiasst_inter_token_latency_seconds_sum", model="talker") == pytest.approx(0.012)
    assert value(found, "aiasst_request_duration_seconds_count", model="talker") == 2
    assert value(found, "aiasst_embedding_duration_seconds_count", model="reader") == 1


def test_models_and_engines_are_asked_when_somebody_reads() -> None:
    service = StatedService()
    metrics = metrics_of(service)
    found = samples(metrics)
    assert value(found, "aiasst_running_requests", model="talker") == 1
    assert value(found, "aiasst_waiting_requests", model="talker") == 2
    assert value(found, "aiasst_model_state", model="talker", state="ready") == 1
    assert value(found, "aiasst_model_state", model="reader", state="unloaded") == 1
    assert value(found, "aiasst_model_info", model="talker", kind="text-generation", task="text-generation") == 1
    assert value(found, "aiasst_engine_decoded_tokens_total", model="talker") == 300
    assert value(found, "aiasst_engine_decode_steps_total", model="talker") == 50
    assert value(found, "aiasst_cache_capacity_tokens", model="talker") == 512
    assert value(found, "aiasst_cache_active_tokens", model="talker") == 77
    assert value(found, "aiasst_memory_ceiling_bytes", model="talker") == 10**9
    assert value(found, "aiasst_utilization_ratio") == 0.25
    service.states = (unloaded(TALKER),)
    found = samples(metrics)
    assert value(found, "aiasst_model_state", model="talker", state="ready") == 0
    assert value(found, "aiasst_cache_slots", model="talker") is None


def test_what_the_host_does_not_tell_is_absent_and_what_it_tells_is_there() -> None:
    names = {name for name, _ in samples(metrics_of(StatedService()))}
    assert not {name for name in names if name.startswith("aiasst_host_")}
    joules = iter(range(0, 10_000, 50))
    found = Found(
        (
            Sensor("hwmon", "temperature", "coretemp/Package id 0", lambda: 61.5),
            Sensor("rapl", "energy", "package-0", lambda: float(next(joules))),
        )
    )
    seen = samples(metrics_of(StatedService(), found=found))
    assert value(seen, "aiasst_host_temperature_celsius") == 61.5
    energy = value(seen, "aiasst_host_energy_joules_total")
    assert energy is not None and energy > 0
    assert value(seen, "aiasst_host_throttle_events_total") is None


def test_labels_are_bounded_whatever_callers_send() -> None:
    metrics = metrics_of(StatedService(), "ann")
    for number in range(500):
        metrics.refused(f"model {number}", f"caller {number}", "not_found")
        metrics.ended(f"model {number}", f"caller {number}", "stop", None, 0.1)
    before = len(samples(metrics))
    metrics.refused("another", "another", "not_found")
    found = samples(metrics)
    assert len(found) == before
    assert value(found, "aiasst_refusals_total", model="", caller="", reason="not_found") == 501
    assert metrics.refusals() == {"not_found": 501}


def test_refusals_are_series_before_the_first_one() -> None:
    found = samples(metrics_of(StatedService()))
    assert value(found, "aiasst_refusals_total", model="talker", caller="", reason="queue_full") == 0


def test_names_follow_the_conventions() -> None:
    metrics = metrics_of(StatedService(), "ann")
    told(metrics)
    text, _ = asyncio.run(metrics.text(""))
    families = [family for family in parse(text.decode()) if not family.name.startswith("process_")]
    for family in families:
        assert re.fullmatch(r"aiasst_[a-z_]+", family.name)
        assert family.documentation.endswith(".")
        assert "_total" not in family.name or family.type == "counter"
        if family.type == "histogram":
            assert family.name.endswith("_seconds")
    assert len({family.name for family in families}) == len(families)


def test_the_exposition_is_openmetrics_where_it_is_accepted() -> None:
    metrics = metrics_of(StatedService())
    told(metrics)
    app = FastAPI()
    app.include_router(router(metrics))
    client = TestClient(app)
    plain = client.get("/metrics")
    assert plain.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    # The header of Prometheus 2.
    accept = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,*/*;q=0.1"
    opened = client.get("/metrics", headers={"accept": accept})
    assert opened.headers["content-type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    families = {family.name: family for family in parse_openmetrics(opened.text)}
    assert families["aiasst_time_to_first_token_seconds"].unit == "seconds"
    assert families["aiasst_build"].samples[0].labels["device"] == "a machine"
    # A version that is none is no error.
    odd = client.get("/metrics", headers={"accept": "application/openmetrics-text; version=x"})
    assert odd.status_code == 200


def test_bounds_reach_from_a_millisecond_to_a_minute() -> None:
    assert BOUNDS[0] == 0.001 and BOUNDS[-1] == 60.0
    assert all(1.3 < upper / lower < 1.7 for lower, upper in itertools.pairwise(BOUNDS))
