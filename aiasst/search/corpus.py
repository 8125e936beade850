"""A corpus: JSON Lines with a text each, found again by the place of their line. Knows no vector.

One row is one line: {"id": …, "text": "…"}; without `id` the line number is the id. Blank lines are no rows, other keys are
allowed and not looked at. A line that is no such row is an error: a corpus with holes would answer as if it had none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aiasst.errors import ArtifactError

Places = npt.NDArray[np.int64]

_HINT = 'a row is one line: {"id": "a", "text": "..."}'
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Passage:
    """A row of the corpus."""

    line: int
    """Counted from 1, blank lines too."""
    id: str | int
    text: str


@dataclass(frozen=True)
class Corpus:
    """A corpus that was read through once: its hash and the places of its rows are known."""

    path: Path
    sha256: str
    places: Places
    """int64 [rows, 2]: the first byte of a row's line, and the number of that line."""

    @classmethod
    def open(cls, path: Path) -> Corpus:
        """Read the file through; its rows are not looked at yet.

        Raises:
            ArtifactError: there is no such file, or it has no row.
        """
        digest, places, place = hashlib.sha256(), [], 0
        try:
            with path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    digest.update(line)
                    if line.strip():
                        places.append((place, number))
                    place += len(line)
        except (FileNotFoundError, NotADirectoryError):
            raise ArtifactError(f"there is no corpus {path}", f"name a .jsonl file; {_HINT}") from None
        except (IsADirectoryError, PermissionError):
            raise ArtifactError(f"{path} cannot be read as a corpus", f"name a .jsonl file; {_HINT}") from None
        if not places:
            raise ArtifactError(f"{path} has no row", _HINT)
        return cls(path, digest.hexdigest(), np.asarray(places, np.int64))

    def __len__(self) -> int:
        return len(self.places)

    def passages(self, rows: Sequence[int]) -> Iterator[Passage]:
        """The passages at these rows (from 0).

        Raises:
            ArtifactError: one of the lines is no row.
        """
        with self.path.open("rb") as file:
            for row in rows:
                place, line = (int(value) for value in self.places[row])
                file.seek(place)
                yield _passage(self.path, line, file.readline())


def _passage(path: Path, line: int, raw: bytes) -> Passage:
    where = f"{path}, line {line}"
    try:
        data: Any = json.loads((raw.removeprefix(_BYTE_ORDER_MARK) if line == 1 else raw).decode("utf-8"))
        text = data.get("text") if isinstance(data, dict) else None
        if isinstance(text, str):
            text.encode("utf-8")  # half a surrogate pair can be written in JSON, and not be tokenized
    except (ValueError, RecursionError):
        raise ArtifactError(f"{where} is not valid JSON in UTF-8", _HINT) from None
    if not isinstance(text, str) or not text.strip():
        raise ArtifactError(f"{where} has no text", _HINT)
    row_id = data.get("id", line)
    if isinstance(row_id, bool) or not isinstance(row_id, str | int):
        raise ArtifactError(f"{where} has an id that is neither text nor a number", _HINT)
    return Passage(line, row_id, text)
