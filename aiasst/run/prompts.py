"""The prompts file: JSON Lines to rows, read one at a time. Knows no engine and no answers.

One row is one line: {"id": …, "prompt": "…"} or {"id": …, "messages": [{"role": …, "content": …}, …]}, and beside it any of
    temperature, top_k, top_p, min_p, seed, max_tokens, stop
    repetition_penalty, frequency_penalty, presence_penalty, logit_bias ({"token id": -100 to 100})
    logprobs (how many alternatives to tell for each token, 0 to 20)
    json_schema (an object), regex or grammar (Lark), one of them: what the answer must be
Without `id` the line number is the id. Blank lines are no rows. A line that is no such row becomes a BadRow and the others
go on.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from pydantic import Field, StrictInt, StrictStr

from aiasst.artifacts.model_folder import disk_errors
from aiasst.engine.fields import MessageFields, ParameterFields, json_object
from aiasst.engine.requests import Sampling
from aiasst.engine.text import TextRequest
from aiasst.errors import ArtifactError, PromptError
from aiasst.tokenizer import Message

_ROW_HINT = 'a row is one line: {"id": "a", "prompt": "..."} or {"id": "a", "messages": [...]}'
_PIECE = 1 << 20

RowId = str | int


@dataclass(frozen=True)
class Row:
    """A row to answer."""

    line: int
    """Counted from 1, blank lines too."""
    id: RowId
    request: TextRequest
    """Its id is the line number in digits: unique whatever the rows' ids are."""


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be answered, and why."""

    line: int
    id: RowId | None
    error: PromptError


class _RowFields(ParameterFields):
    """The keys of a row."""

    id: StrictStr | StrictInt | None = None
    prompt: str | None = None
    messages: Annotated[tuple[MessageFields, ...] | None, Field(strict=False)] = None


@dataclass(frozen=True)
class Prompts:
    """An open prompts file that was read through once: its hash and its number of rows are known."""

    file: BinaryIO
    sha256: str
    rows: int
    lines: int

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """(line number, line) of every row, in order; lines that were added meanwhile are left out."""
        self.file.seek(0)
        for number, line in enumerate(islice(self.file, self.lines), start=1):
            if text := _bare(number, line):
                yield number, text


@contextmanager
def open_prompts(source: Path | BinaryIO) -> Iterator[Prompts]:
    """Open a prompts file, or take a stream to its end (into a temporary file, so that it need not fit into memory).

    Raises:
        ArtifactError: there is no such file.
        ResourceError: no room for the temporary file.
    """
    if isinstance(source, Path):
        with _opened(source) as file:
            yield _read_through(file)
        return
    with tempfile.TemporaryFile(prefix="aiasst-prompts-") as spool:
        with disk_errors(Path(tempfile.gettempdir())):
            while piece := source.read(_PIECE):
                spool.write(piece)
            spool.flush()
        spool.seek(0)
        yield _read_through(spool)


def _opened(path: Path) -> BinaryIO:
    hint = "name a file with one JSON object a line"
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise ArtifactError(f"there is no prompts file {path}", hint) from None
    except (IsADirectoryError, PermissionError):
        raise ArtifactError(f"{path} cannot be read as a prompts file", hint) from None


def _read_through(file: BinaryIO) -> Prompts:
    digest, rows, lines = hashlib.sha256(), 0, 0
    for line in file:
        digest.update(line)
        lines += 1
        rows += bool(_bare(lines, line))
    return Prompts(file, digest.hexdigest(), rows, lines)


def _bare(number: int, line: bytes) -> bytes:
    # Windows editors begin a file with a byte order mark.
    return (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).strip()


class RowIds:
    """Remembers every id, because two rows with one id cannot be told apart."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def register(self, line: int, row_id: RowId) -> None:
        """Remember the id of a row. Raises PromptError where an earlier row has it."""
        if str(row_id) in self._seen:
            raise PromptError(f"line {line}: an earlier row has the id {row_id!r} too", "give every row its own id")
        self._seen.add(str(row_id))


class RowReader:
    """Lines to rows, in the order of the file."""

    def __init__(self, defaults: Sampling, stop: tuple[str, ...], seed: int) -> None:
        """`defaults` and `stop` hold where a row says nothing; `seed` is the job's (see `row_seed`)."""
        self._defaults = defaults
        self._stop = stop
        self._seed = seed
        self._ids = RowIds()

    def read(self, line: int, text: bytes) -> Row | BadRow:
        """The row in `text`. The later of two rows with the same id is a bad one."""
        row_id: RowId | None = None
        try:
            data = parse_line(line, text)
            row_id = id_in(data, line)
            self._ids.register(line, row_id)
            fields = _RowFields.parse(data, f"line {line}")
            return Row(line, row_id, self._request(line, row_id, fields))
        except ArtifactError as error:
            return BadRow(line, row_id, PromptError(error.message, _ROW_HINT))
        except PromptError as error:
            return BadRow(line, row_id, error)

    def _request(self, line: int, row_id: RowId, fields: _RowFields) -> TextRequest:
        if (fields.prompt is None) == (fields.messages is None):
            raise PromptError(f"line {line}: a row has either 'prompt' or 'messages'", _ROW_HINT)
        return TextRequest(
            id=str(line),
            prompt=fields.prompt,
            messages=None if fields.messages is None else tuple(Message(m.role, m.content) for m in fields.messages),
            sampling=fields.sampling(replace(self._defaults, seed=row_seed(self._seed, row_id))),
            stop=fields.stops(self._stop),
            constraint=fields.constraint(f"line {line}: a row"),
        )


def row_seed(seed: int, row_id: RowId) -> int:
    """The seed of a row in a job with `seed`: of its id alone, so that neither order nor batch nor a restart changes it.

    The same seed draws the same random numbers. What they choose among is computed with rounding that depends, in the
    sixth digit, on how many rows are computed together, so that a sampled answer may still take another turn.
    """
    digest = hashlib.blake2b(f"{seed}:{row_id}".encode(), digest_size=4)
    return int.from_bytes(digest.digest(), "little")


def parse_line(line: int, text: bytes, hint: str = _ROW_HINT) -> dict[str, Any]:
    """The JSON object in a line; `hint` says in an error what a row is.

    Raises:
        PromptError: it is no JSON object, or holds text that is no Unicode (half a surrogate pair).
    """
    return json_object(text, f"line {line}", hint)


def id_in(data: dict[str, Any], line: int) -> RowId:
    """The row's id even where other keys are wrong, so that its error row can be matched; the line number where it has none."""
    value = data.get("id")
    if isinstance(value, bool) or not isinstance(value, str | int):
        return line
    return value
