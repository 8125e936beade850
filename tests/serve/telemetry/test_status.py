import json

from fastapi import FastAPI
from fastapi.testclient import TestClient

from aiasst.engine.text import Usage
from aiasst.sensors.reading import Found, Sensor
from aiasst.serve.telemetry.metrics import Metrics
from aiasst.serve.telemetry.status import router
from tests.serve.states import StatedService, metrics_of


def client_of(service: StatedService, metrics: Metrics) -> TestClient:
    app = FastAPI()
    app.include_router(router(metrics, service))
    return TestClient(app)


def test_live_numbers_are_those_of_the_last_minute() -> None:
    service = StatedService()
    metrics = metrics_of(service)
    client = client_of(service, metrics)
    metrics.began("talker", "")
    metrics.first_token("talker", 0.1)
    for _ in range(99):
        metrics.next_token("talker", 0.0149)
    metrics.ended("talker", "", "stop", Usage(40, 10, 100, 8, 6), 1.6)
    metrics.refused("talker", "", "queue_full")
    told = client.get("/v1/status?window=30").json()
    talker, reader = told["models"]
    assert talker["name"] == "talker" and reader["state"] == "unloaded"
    assert talker["inter_token_latency"]["count"] == 99
    assert 0.01 < talker["inter_token_latency"]["p50"] <= 0.015
    assert 0.07 < talker["time_to_first_token"]["p99"] <= 0.1
    assert talker["prefix_hit_ratio"] == 0.25
    assert talker["draft_acceptance_ratio"] == 0.75
    assert talker["batch_rows"] == 6.0
    assert talker["cache"] == {
        "slots": 4,
        "capacity_tokens": 512,
        "active_tokens": 77,
        "bytes": 10_000,
        "prefix_bytes": 2_000,
    }
    assert talker["completion_tokens_per_second"] > 0
    assert reader["cache"] is None and reader["time_to_first_token"]["p50"] is None
    assert told["refusals"] == {"queue_full": 1}
    assert told["host"]["utilization"] == 0.25
    assert told["host"]["ceiling_bytes"] == 10**9
    assert told["window_seconds"] == 30


def test_what_the_host_does_not_tell_is_null_with_its_reason() -> None:
    service = StatedService()
    host = client_of(service, metrics_of(service)).get("/v1/status").json()["host"]
    assert host["temperature_celsius"] is None and host["power_watts"] is None
    assert any(reason.startswith("no temperature:") for reason in host["missing"])
    found = Found((Sensor("hwmon", "temperature", "coretemp/Package id 0", lambda: 48.0),))
    host = client_of(service, metrics_of(service, found=found)).get("/v1/status").json()["host"]
    assert host["temperature_celsius"] == 48.0


def test_a_window_out_of_range_is_refused() -> None:
    service = StatedService()
    client = client_of(service, metrics_of(service))
    for window in ("0", "-1", "1e9", "nan", "inf", "x"):
        assert client.get(f"/v1/status?window={window}").status_code == 422


def test_the_schema_describes_the_answer() -> None:
    service = StatedService()
    schema = json.dumps(client_of(service, metrics_of(service)).get("/openapi.json").json())
    assert "time_to_first_token" in schema and "temperature_celsius" in schema
