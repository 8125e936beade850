"""Names of hosts and origins of pages."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiasst.serve.guard.hosts import Hosts, Origins, is_loopback, same, split
from aiasst.serve.refusals import Refusal


def refused(hosts: Hosts, host: str | None) -> bool:
    try:
        hosts.check(host)
    except Refusal:
        return True
    return False


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "a.localhost", "LOCALHOST.", "::ffff:127.0.0.1"]
)
def test_names_of_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "", "10.0.0.1", "localhost.example.org", "127.0.0.1.nip.io", "notlocalhost"]
)
def test_names_of_others(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("host", "parts"),
    [
        ("localhost:8080", ("localhost", 8080)),
        ("[::1]:8080", ("::1", 8080)),
        ("Example.ORG.", ("example.org", None)),
        ("10.0.0.1", ("10.0.0.1", None)),
        ("", None),
        ("a b", None),
        ("user@localhost", None),
        ("localhost:port", None),
        ("localhost:8080/path", None),
        ("::1", None),
        ("localhost, evil.example", None),
    ],
)
def test_a_host_header_is_a_name_and_a_port(host: str, parts: tuple[str, int | None] | None) -> None:
    assert split(host) == parts


def test_a_name_that_was_made_to_point_here_is_refused() -> None:
    hosts = Hosts("127.0.0.1", ("assistant.example.org",))
    for host in ("localhost:8080", "127.0.0.1", "[::1]:1", "assistant.example.org", "ASSISTANT.example.org:443"):
        assert not refused(hosts, host)
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8080", "10.0.0.1", "", None):
        assert refused(hosts, host)


def test_in_a_network_only_given_names_restrict() -> None:
    assert not refused(Hosts("0.0.0.0"), "whatever.example")
    assert refused(Hosts("0.0.0.0", ("assistant.example.org",)), "whatever.example")
    assert not refused(Hosts("0.0.0.0", ("assistant.example.org",)), "localhost:8080")


@pytest.mark.parametrize(
    ("origin", "host", "ours"),
    [
        ("http://localhost:8080", "localhost:8080", True),
        ("https://assistant.example.org", "assistant.example.org", True),
        ("https://assistant.example.org", "assistant.example.org:443", True),
        ("http://[::1]:8080", "[::1]:8080", True),
        ("http://localhost:3000", "localhost:8080", False),
        ("http://localhost", "localhost:8080", False),
        ("http://127.0.0.1:8080", "localhost:8080", False),
        ("null", "localhost:8080", False),
        ("http://localhost:8080.evil.example", "localhost:8080", False),
        ("http://localhost:8080@evil.example", "localhost:8080", False),
        ("http://evil.example/localhost:8080", "localhost:8080", False),
        ("file://", "localhost", False),
        ("http://localhost:99999", "localhost:8080", False),
        ("http://[", "localhost:8080", False),
        ("", "localhost:8080", False),
    ],
)
def test_a_page_of_the_service_itself(origin: str, host: str, ours: bool) -> None:
    assert same(origin, host) is ours


@settings(max_examples=30)
@given(st.text(max_size=20), st.text(max_size=20))
def test_no_origin_and_no_host_break_it(origin: str, host: str) -> None:
    if same(origin, host):
        assert split(host) is not None
        assert origin.lower().startswith(("http", "ws"))


def test_pages_that_may_ask() -> None:
    origins = Origins(("https://app.example", "http://localhost:3000/"))
    for given_origins in ([], ["http://localhost:8080"], ["https://app.example"], ["http://localhost:3000"]):
        origins.check(given_origins, "localhost:8080")
    foreign = (["https://app.example.evil"], ["http://app.example"], ["https://sub.app.example"], ["null"])
    for given_origins in (*foreign, ["https://app.example", "https://app.example"]):
        with pytest.raises(Refusal):
            origins.check(given_origins, "localhost:8080")
