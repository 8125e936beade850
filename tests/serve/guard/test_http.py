"""What a request meets before the application: keys, names, pages of others, paths, headers, ids, rates."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aiasst.serve.settings import Limits, ServeSettings
from tests.serve.guard.served import Served, head, served

ANNA, BEN = "anna-" + "a" * 20, "ben-" + "b" * 20
PAGE = "http://app.example:3000"


@pytest.fixture(scope="module")
def keyed() -> Iterator[Served]:
    with served(ServeSettings(port=0, keys={"anna": ANNA, "ben": BEN}, origins=(PAGE,))) as server:
        yield server


@pytest.fixture(scope="module")
def open_() -> Iterator[Served]:
    with served(ServeSettings(port=0)) as server:
        yield server


def test_a_key_is_needed_and_names_the_caller(keyed: Served) -> None:
    assert keyed.request("GET", "/v1/models", authorization=f"Bearer {ANNA}").said["caller"] == "anna"
    assert keyed.request("POST", "/v1/models", b"{}", x_api_key=BEN).said["caller"] == "ben"
    for headers in ({}, {"authorization": f"Bearer {ANNA}x"}, {"authorization": f"Basic {ANNA}"}, {"cookie": ANNA}):
        answer = keyed.request("GET", "/v1/models", **headers)
        assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert ANNA not in answer.body.decode()


def test_a_key_in_the_url_is_none(keyed: Served) -> None:
    for query in (f"api_key={ANNA}", f"key={ANNA}", f"authorization=Bearer%20{ANNA}"):
        assert keyed.request("GET", f"/v1/models?{query}").status == 401


def test_invalid_utf_8_in_headers_is_no_key_and_no_failure(keyed: Served) -> None:
    for name in (b"authorization: Bearer ", b"x-api-key: ", b"x-request-id: ", b"origin: ", b"user-agent: "):
        answer = keyed.say(head("GET", "/v1/models", host="localhost")[:-2] + name + b"\xff\xfe\xc3\r\n\r\n")
        assert answer.status in (401, 403), name


def test_refusals_are_told_to_who_counts(keyed: Served) -> None:
    before = len(keyed.told.reasons)
    keyed.request("GET", "/v1/models")
    keyed.request("GET", "/refuses", authorization=f"Bearer {ANNA}")
    keyed.until(lambda: keyed.told.reasons[before:] == [("", "unauthorized"), ("anna", "queue_full")])


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/", "/dashboard", "/favicon.ico", "/page/app.js"])
def test_what_needs_no_key(keyed: Served, path: str) -> None:
    assert keyed.request("GET", path).status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/metrics",
        "/docs",
        "/openapi.json",
        "/v1/models",
        "/health",
        "/health/live/",
        "/page",
        "/Page/x",
        "/health%2flive2",
    ],
)
def test_what_needs_one(keyed: Served, path: str) -> None:
    assert keyed.request("GET", path).status == 401


@pytest.mark.parametrize(
    "path",
    [
        "/page/../v1/models",
        "/page/%2e%2e/v1/models",
        "/page/%2E./v1/models",
        "/page/..%2fv1%2fmodels",
        "/page//v1/models",
        "/page/%2fv1/models",
        "/page/..%5cv1",
        "/page/\\..\\v1",
        "/page/%00",
        "/page/%0d%0aset-cookie:x",
        "/page/.",
        "//v1/models",
        "http://evil.example/v1/models",
        "*",
        "page/x",
    ],
)
def test_paths_that_are_read_in_two_ways_are_refused(keyed: Served, path: str) -> None:
    seen = len(keyed.app.calls)
    assert keyed.request("GET", path).status == 400
    assert len(keyed.app.calls) == seen


def test_without_keys_everyone_on_the_machine_may_ask(open_: Served) -> None:
    for headers in ({}, {"authorization": "Bearer sk-none"}):
        assert open_.request("GET", "/metrics", **headers).said["caller"] == ""


def test_metrics_may_be_open() -> None:
    with served(ServeSettings(port=0, keys={"anna": ANNA}, open_metrics=True, page=False)) as server:
        assert server.request("GET", "/metrics").status == 200
        assert server.request("GET", "/metrics/").status == 401
        assert server.request("GET", "/").status == 401


def test_a_foreign_name_of_this_address_is_refused(open_: Served) -> None:
    for host in ("evil.example", "127.0.0.1.nip.io", "evil.example:80"):
        answer = open_.request("GET", "/v1/models", host=host)
        assert (answer.status, answer.error["code"]) == (403, "forbidden")
        assert open_.request("GET", "/", host=host).status == 403
        # Orchestrators call a service by any address; that it lives is no secret.
        assert open_.request("GET", "/health/live", host=host).status == 200
    for host in ("localhost", "[::1]:8080"):
        assert open_.request("GET", "/v1/models", host=host).status == 200


def test_a_foreign_page_is_refused_before_anything_is_done(open_: Served) -> None:
    seen = len(open_.app.calls)
    for origin in ("http://evil.example", "null", f"http://localhost:{open_.port + 1}", PAGE):
        # What browsers send without asking first: a plain form.
        answer = open_.request("POST", "/v1/chat/completions", b'{"a":1}', origin=origin, content_type="text/plain")
        assert answer.status == 403
        preflight = {"origin": origin, "access_control_request_method": "POST"}
        answer = open_.request("OPTIONS", "/v1/chat/completions", **preflight)
        assert answer.status == 403
        assert not any(name.startswith("access-control") for name in answer.headers)
    assert len(open_.app.calls) == seen
    own = f"http://127.0.0.1:{open_.port}"
    assert open_.request("POST", "/v1/chat/completions", b"{}", origin=own).status == 200


def test_a_page_that_may_ask_is_told_so(keyed: Served) -> None:
    preflight = {
        "origin": PAGE,
        "access_control_request_method": "POST",
        "access_control_request_headers": "authorization, content-type, x-stainless-lang",
        "access_control_request_private_network": "true",
    }
    answer = keyed.request("OPTIONS", "/v1/chat/completions", **preflight)
    assert answer.status == 204
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert answer.headers["access-control-allow-headers"] == preflight["access_control_request_headers"]
    assert answer.headers["access-control-allow-private-network"] == "true"
    assert "access-control-allow-credentials" not in answer.headers
    for headers in ({"authorization": f"Bearer {ANNA}"}, {}):
        answer = keyed.request("GET", "/v1/models", origin=PAGE, **headers)
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert answer.headers["vary"] == "origin"
    plain = keyed.request("GET", "/v1/models", authorization=f"Bearer {ANNA}")
    assert plain.headers["vary"] == "origin"
    assert "access-control-allow-origin" not in plain.headers


def test_every_answer_makes_browsers_careful(keyed: Served) -> None:
    for path in ("/", "/health/live", "/v1/models", "/page/.."):
        answer = keyed.request("GET", path)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert "permissions-policy" in answer.headers
        assert "server" not in answer.headers
        assert "strict-transport-security" not in answer.headers
        assert (answer.headers.get("cache-control") == "no-store") is (path != "/")


def test_headers_of_the_application_stay(open_: Served) -> None:
    answer = open_.request("GET", "/own-headers")
    assert answer.headers["content-security-policy"] == "own"
    assert "server" not in answer.headers


def test_ids_of_requests(open_: Served) -> None:
    answer = open_.request("GET", "/v1/models", x_request_id="my.id-1_2")
    assert answer.headers["x-request-id"] == answer.said["id"] == "my.id-1_2"
    made = set()
    for given in ("", "a b", "x" * 129, "id\tforged", '"><script>', "é", "-x"):
        answer = open_.request("GET", "/v1/models", x_request_id=given)
        assert answer.headers["x-request-id"] == answer.said["id"] != given
        made.add(answer.headers["x-request-id"])
    assert len(made) == 7


def test_refusals_that_the_application_lets_through_are_answered(open_: Served) -> None:
    answer = open_.request("POST", "/refuses", b"{}")
    assert answer.status == 429
    assert answer.headers["retry-after"] == "3"
    assert answer.error == {
        "message": "257 requests wait; try again",
        "type": "rate_limit_error",
        "param": "model",
        "code": "queue_full",
    }


@pytest.mark.parametrize(
    "lines",
    [
        b"x-a: b\rx-injected: c",
        b"x-a : b",
        b" folded: x",
        b"x-a: \x00",
        b"transfer-encoding: chunked\r\ncontent-length: 3",
        b"content-length: 3\r\ncontent-length: 4",
        b"content-length: -1",
        b"content-length: +1",
        b"transfer-encoding: chunked, identity",
        b"host: other",
        b"origin: http://localhost\r\norigin: http://localhost",
    ],
)
def test_heads_that_are_read_in_two_ways_are_refused(open_: Served, lines: bytes) -> None:
    answer = open_.say(head("POST", "/v1/models", host="localhost")[:-2] + lines + b"\r\n\r\n")
    assert answer.status in (400, 403, 501)
    assert b"injected" not in answer.body


def test_large_and_many_headers() -> None:
    with served(ServeSettings(port=0, limits=Limits(most_header_bytes=2000))) as server:
        assert server.request("GET", "/v1/models", x_large="x" * 1800).status == 200
        answer = server.request("GET", "/v1/models", x_large="x" * 2000)
        assert (answer.status, answer.error["code"]) == (431, "headers_too_large")
        many = {f"x_{number}": "" for number in range(120)}
        assert server.request("GET", "/v1/models", **many).status == 431
        # Without an end the parser stops it.
        assert server.say(b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"x" * 300_000).status in (0, 400)
        assert server.request("GET", "/" + "x" * 300_000).status in (0, 400, 414, 431)


def test_rates_are_of_keys_and_told() -> None:
    limits = Limits(requests_per_minute=6)
    with served(ServeSettings(port=0, keys={"anna": ANNA, "ben": BEN}, limits=limits)) as server:
        anna, ben = {"authorization": f"Bearer {ANNA}"}, {"authorization": f"Bearer {BEN}"}
        answers = [server.request("GET", "/v1/models", **anna) for _ in range(4)]
        assert [answer.status for answer in answers] == [200, 200, 200, 429]
        assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers[:3]] == ["2", "1", "0"]
        assert answers[0].headers["x-ratelimit-limit-requests"] == "6"
        assert answers[3].error["code"] == "rate_limited"
        assert 1 <= int(answers[3].headers["retry-after"]) <= 10
        assert server.request("GET", "/v1/models", **ben).status == 200
        # Who watches is not counted.
        for path in ("/health/live", "/metrics", "/"):
            assert server.request("GET", path, **anna).status == 200
        server.until(lambda: server.told.reasons == [("anna", "rate_limited")])
