"""API keys: read from files and the environment, recognized in constant time. Knows no protocol but the form of `Authorization`.

A file has one key a line, `name: key` or the key alone; empty lines and lines that begin with # are skipped. The environment has
AIASST_API_KEY (one key) and AIASST_API_KEYS (several, separated by commas or lines, with or without names). The characters of a key
are those that a header may carry (token68, RFC 9110 section 11.2), so that the first colon of a line always ends a name.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from aiasst.errors import UsageError
from aiasst.serve.refusals import Refusal

KEY = re.compile(r"[A-Za-z0-9\-._~+/]+=*")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Names stand in logs and are labels of metrics."""
MOST_FILE_BYTES = 2**20
LEAST_LENGTH = 16
"""Characters of a key that others in a network may guess at: 96 bits where they were drawn at random."""
ENVIRONMENT = ("AIASST_API_KEY", "AIASST_API_KEYS")
HINT = 'one makes a key:  python -c "import secrets; print(secrets.token_urlsafe(32))"'


def read_file(path: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """Name → key, and warnings about who can read the file.

    Raises:
        UsageError: the file cannot be read, others may write to it, or a line is no key.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read(MOST_FILE_BYTES + 1)
        text = data.decode("utf-8")
    except OSError as error:
        raise UsageError(
            f"cannot read API keys: {path}: {error.strerror}", "give a file with one key a line"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not text", "give a file with one key a line, `name: key` or the key alone"
        ) from error
    if len(data) > MOST_FILE_BYTES:
        raise UsageError(f"{path} is larger than a file of keys may be ({MOST_FILE_BYTES} bytes)")
    keys = parse(text.splitlines(), str(path))
    if not keys:
        raise UsageError(f"{path} has no keys", HINT)
    return keys, _mode_warnings(path, mode)


def read_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Name → key of AIASST_API_KEY and AIASST_API_KEYS; {} where neither is set.

    Raises:
        UsageError: an entry is no key.
    """
    one, several = (environment.get(name, "") for name in ENVIRONMENT)
    keys = parse(several.replace(",", "\n").splitlines(), ENVIRONMENT[1])
    alone = parse([one], ENVIRONMENT[0])
    if set(alone.values()) <= set(keys.values()):
        return keys
    return merged({"default" if ":" not in one else name: key for name, key in alone.items()}, keys)


def merged(*sources: Mapping[str, str]) -> dict[str, str]:
    """The keys of all sources.

    Raises:
        UsageError: two have one name, or one key has two names.
    """
    together: dict[str, str] = {}
    for source in sources:
        for name, key in source.items():
            if together.get(name, key) != key:
                raise UsageError(f"two API keys are called '{name}'", "give each a name of its own:  name: key")
            together[name] = key
    if len(set(together.values())) < len(together):
        raise UsageError("one API key has two names", "give each name a key of its own")
    return together


def parse(lines: list[str], where: str) -> dict[str, str]:
    """Name → key of lines; a key alone is called key1, key2, … after its place among the keys.

    Raises:
        UsageError: a line is no key; the line's number is told, never what it says.
    """
    keys: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, colon, key = (part.strip() for part in line.rpartition(":"))
        name = name if colon else f"key{len(keys) + 1}"
        if not NAME.fullmatch(name) or not KEY.fullmatch(key):
            hint = "a name has letters, digits, and . _ -; a key has letters, digits, and - . _ ~ + / ="
            raise UsageError(f"{where}, line {number}: neither `name: key` nor a key", hint)
        if name in keys:
            raise UsageError(f"{where}, line {number}: a second key is called '{name}'", "give each a name of its own")
        keys[name] = key
    return merged(keys)


def presented(authorization: str | None, x_api_key: str | None = None) -> str | None:
    """The key of `Authorization: Bearer KEY` (RFC 6750), else of `x-api-key`; None where there is neither."""
    scheme, _, key = (authorization or "").strip().partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return x_api_key or None


class Keys:
    """The keys that are known, by their hashes."""

    def __init__(self, keys: Mapping[str, str]) -> None:
        """`keys`: name → key; none: nobody needs one."""
        self._digests = [(name, _digest(key)) for name, key in keys.items()]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def name(self, key: str | None) -> str:
        """Who has this key; "" where none is needed.

        All keys are compared, whichever it is, and by hashes, so that the time tells neither which one nor how much of it fits.

        Raises:
            Refusal: "unauthorized".
        """
        if not self._digests:
            return ""
        if key is None:
            raise Refusal("unauthorized", "an API key is needed", "send the header  Authorization: Bearer KEY")
        digest, found = _digest(key), ""
        for name, known in self._digests:
            found = name if hmac.compare_digest(digest, known) else found
        if not found:
            raise Refusal("unauthorized", "this API key is not known here", "ask whoever runs the service for a key")
        return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _mode_warnings(path: Path, mode: int) -> tuple[str, ...]:
    """Who else can read `path`; an error where others can write. Windows tells nothing by the mode of a file."""
    if os.name == "nt":
        return ()
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UsageError(f"others may write API keys into {path} (mode {mode:03o})", f"chmod 600 {path}")
    if mode & stat.S_IROTH:
        return (f"everyone on this machine can read the API keys in {path} (mode {mode:03o}); chmod 600 {path}",)
    return ()
