from fastapi import FastAPI
from fastapi.testclient import TestClient

from aiasst.serve.telemetry.health import router
from tests.serve.states import StatedService


def client_of(service: StatedService) -> TestClient:
    app = FastAPI()
    app.include_router(router(service))
    return TestClient(app)


def test_it_is_live_whatever_its_models_are() -> None:
    answer = client_of(StatedService(accepting=False, ready=False)).get("/health/live")
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"


def test_it_is_ready_while_requests_would_be_served() -> None:
    service = StatedService()
    client = client_of(service)
    assert client.get("/health/ready").json() == {"status": "ready"}
    service.ready = False
    answer = client.get("/health/ready")
    assert answer.status_code == 503 and answer.json()["reason"] == "model unavailable"
    service.accepting = False
    answer = client.get("/health/ready")
    assert answer.status_code == 503 and answer.json()["reason"] == "stopping"


def test_neither_tells_a_name_or_a_path() -> None:
    client = client_of(StatedService(ready=False))
    assert "talker" not in client.get("/health/ready").text + client.get("/health/live").text
