"""Whether a certificate and its key can be used, before the service listens. Knows no server."""

from __future__ import annotations

import os
import ssl
import stat
from pathlib import Path

from aiasst.errors import UsageError
from aiasst.serve.settings import Tls

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2: forward secrecy and authenticated encryption only (RFC 9325). Those of TLS 1.3 are all such."""


def check(tls: Tls) -> tuple[str, ...]:
    """Warnings about files that can be used.

    Raises:
        UsageError: a file is missing or no PEM, the key is of another certificate or asks for a password.
    """
    for path, what in ((tls.certificate, "certificate"), (tls.key, "key")):
        try:
            path.read_bytes()
        except OSError as error:
            raise UsageError(f"cannot read the TLS {what}: {path}: {error.strerror}", "give a file in PEM") from error
    try:
        context(tls)
    except ssl.SSLError as error:
        raise UsageError(*_trouble(tls, error)) from error
    return _readable_key(tls.key)


def context(tls: Tls) -> ssl.SSLContext:
    """What a server offers: TLS 1.2 and 1.3.

    Raises:
        ssl.SSLError: the files do not fit.
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.set_ciphers(CIPHERS)
    # Without this OpenSSL asks for the password on the terminal, and a service has none.
    made.load_cert_chain(tls.certificate, tls.key, password=lambda: "")
    return made


def _trouble(tls: Tls, error: ssl.SSLError) -> tuple[str, str]:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"{tls.key} is not the key of the certificate {tls.certificate}", "give the two that were made together"
    reason = (error.reason or str(error)).replace("_", " ").lower()
    hint = "both must be in PEM, the certificate before those that signed it, the key without a password"
    return f"TLS cannot use {tls.certificate} with {tls.key}: {reason}", hint


def _readable_key(path: Path) -> tuple[str, ...]:
    mode = stat.S_IMODE(path.stat().st_mode)
    if os.name != "nt" and mode & stat.S_IROTH:
        return (f"everyone on this machine can read the TLS key {path} (mode {mode:03o}); chmod 600 {path}",)
    return ()
