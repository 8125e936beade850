"""The base of every file people may read or write: frozen, unknown keys refused, errors in words. Knows no particular file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from aiasst.errors import ArtifactError


class Document(BaseModel):
    """A frozen pydantic model that forbids unknown keys; the parts of our files derive from it."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @classmethod
    def parse(cls, data: object, what: str) -> Self:
        """Validate `data` (the parsed JSON or YAML). `what` names the file in the error.

        Raises:
            ArtifactError: a key is unknown, missing or of the wrong kind.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            problems = "; ".join(_in_words(p) for p in error.errors()[:5])
            raise ArtifactError(f"{what}: {problems}", "correct these keys, or write the file anew") from None

    def to_json(self) -> str:
        """The document as indented JSON text with a newline at its end."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


def _in_words(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"]) or "the document"
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{where}'"
    if problem["type"] == "missing":
        return f"missing key '{where}'"
    return f"'{where}': {problem['msg']}"


def read_text(path: Path, what: str, hint: str) -> str:
    """The text of `path`. Raises ArtifactError with `hint` where it is absent or not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(f"there is no {what} at {path}", hint) from None
    except IsADirectoryError:
        raise ArtifactError(f"{path} is a folder, not a {what}", hint) from None
    except UnicodeDecodeError:
        raise ArtifactError(f"{path} is not UTF-8 text, so it is no {what}", hint) from None


def read_json(path: Path, what: str, hint: str) -> Any:
    """The JSON value in `path`. Raises ArtifactError where it is absent or broken."""
    try:
        return json.loads(read_text(path, what, hint))
    except json.JSONDecodeError as error:
        raise ArtifactError(f"{path} is not valid JSON (line {error.lineno}: {error.msg})", hint) from None


def read_yaml(path: Path, what: str, hint: str) -> Any:
    """The YAML value in `path`. Raises ArtifactError where it is absent or broken."""
    try:
        return yaml.safe_load(read_text(path, what, hint))
    except yaml.YAMLError as error:
        raise ArtifactError(f"{path} is not valid YAML: {error}", hint) from None


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, renamed at the end: a reader sees the old file or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomically(path: Path, text: str) -> None:
    """Write `text` to `path`; see `written_whole`."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
