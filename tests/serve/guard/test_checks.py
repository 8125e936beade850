"""Settings that would be unsafe are refused; TLS is what it says it is."""

from __future__ import annotations

import shutil
import socket
import ssl
from dataclasses import replace
from pathlib import Path

import pytest

from aiasst.errors import UsageError
from aiasst.serve.guard import check
from aiasst.serve.settings import Limits, ServeSettings, Tls
from tests.serve.guard.served import PATIENCE, Served, head, read_answer, served

FILES = Path(__file__).parent / "tls"
KEY = "k" * 20


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    for name in ("localhost.pem", "localhost.key", "other.key", "locked.key"):
        shutil.copy(FILES / name, tmp_path / name)
        (tmp_path / name).chmod(0o600)
    return Tls(tmp_path / "localhost.pem", tmp_path / "localhost.key")


def test_on_this_machine_no_key_is_needed() -> None:
    for host in ("127.0.0.1", "localhost", "::1"):
        assert check(ServeSettings(host=host)) == ()
    assert check(ServeSettings(keys={"anna": "short"})) == ()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", ""])
def test_in_a_network_one_is(host: str) -> None:
    with pytest.raises(UsageError, match="no API keys") as caught:
        check(ServeSettings(host=host))
    assert "AIASST_API_KEY" in caught.value.hint
    with pytest.raises(UsageError, match="5 characters"):
        check(ServeSettings(host=host, keys={"anna": "short"}))
    warnings = check(ServeSettings(host=host, keys={"anna": KEY}))
    assert "without TLS" in warnings[0]


def test_keys_are_never_told() -> None:
    settings = ServeSettings(host="0.0.0.0", keys={"anna": "not a key \n"})
    with pytest.raises(UsageError) as caught:
        check(settings)
    assert "not a key" not in f"{caught.value} {caught.value.hint} {settings}"


@pytest.mark.parametrize("origin", ["*", "null", "example.org", "https://example.org/path", "ftp://example.org", ""])
def test_origins_are_exact(origin: str) -> None:
    with pytest.raises(UsageError, match="origin"):
        check(ServeSettings(origins=(origin,)))


def test_origins_and_names_that_are_taken() -> None:
    assert check(ServeSettings(origins=("https://example.org", "tauri://localhost"), hosts=("example.org",))) == ()
    for host in ("example.org:80", "https://example.org", ""):
        with pytest.raises(UsageError, match="name of a host"):
            check(ServeSettings(hosts=(host,)))


@pytest.mark.parametrize(
    "name", ["most_running", "most_body_bytes", "body_seconds", "most_connections", "requests_per_minute"]
)
def test_limits_are_more_than_nothing(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        check(ServeSettings(limits=replace(Limits(), **{name: 0})))


def test_a_certificate_and_its_key(tls: Tls) -> None:
    assert check(ServeSettings(host="0.0.0.0", keys={"anna": KEY}, tls=tls)) == ()
    tls.key.chmod(0o644)
    assert "chmod 600" in check(ServeSettings(tls=tls))[0]


def test_files_that_do_not_fit(tls: Tls, tmp_path: Path) -> None:
    (tmp_path / "text.pem").write_text("no certificate")
    wrong = [
        (replace(tls, key=tmp_path / "other.key"), "not the key of the certificate"),
        (replace(tls, key=tmp_path / "locked.key"), "cannot use"),
        (replace(tls, certificate=tmp_path / "text.pem"), "cannot use"),
        (replace(tls, certificate=tmp_path / "missing.pem"), "cannot read the TLS certificate"),
        (replace(tls, key=tmp_path), "cannot read the TLS key"),
        (Tls(tls.key, tls.certificate), "cannot use"),
    ]
    for files, message in wrong:
        with pytest.raises(UsageError, match=message):
            check(ServeSettings(tls=files))


def safely(server: Served, tls: Tls) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(tls.certificate))
    plain = socket.create_connection(("127.0.0.1", server.port), PATIENCE)
    return context.wrap_socket(plain, server_hostname="localhost")


def test_tls_of_today_and_nothing_older(tls: Tls) -> None:
    with served(ServeSettings(port=0, tls=tls)) as server:
        context = ssl.create_default_context(cafile=str(tls.certificate))
        with context.wrap_socket(
            socket.create_connection(("127.0.0.1", server.port), PATIENCE), server_hostname="localhost"
        ) as safe:
            assert safe.version() == "TLSv1.3"
            safe.sendall(head("GET", "/v1/models", host="assistant.localhost"))
            answer = read_answer(safe)
            assert answer.status == 200
            # For a name of this machine it would bind everything else that listens here.
            assert "strict-transport-security" not in answer.headers
        assert server.server.config.ssl is not None
        assert server.server.config.ssl.minimum_version == ssl.TLSVersion.TLSv1_2
        offered = {cipher["name"] for cipher in server.server.config.ssl.get_ciphers()}
        assert all(name.startswith(("ECDHE-", "TLS_")) and ("GCM" in name or "CHACHA20" in name) for name in offered)
        # What is not TLS is let go.
        with server.connect() as connection:
            connection.sendall(head("GET", "/", host="localhost"))
            assert read_answer(connection).status == 0


def test_browsers_are_told_to_stay_with_tls(tls: Tls) -> None:
    with served(ServeSettings(port=0, tls=tls, hosts=("assistant.example.org",))) as server:
        context = ssl.create_default_context(cafile=str(tls.certificate))
        with context.wrap_socket(
            socket.create_connection(("127.0.0.1", server.port), PATIENCE), server_hostname="localhost"
        ) as safe:
            safe.sendall(head("GET", "/v1/models", host="assistant.example.org"))
            assert read_answer(safe).headers["strict-transport-security"].startswith("max-age=")
