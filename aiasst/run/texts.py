"""The file of texts for an encoder: JSON Lines to texts and pairs. Knows no model and no answers.

One row is one line: {"id": …, "text": "…"}, or {"id": …, "text": "…", "pair": "…"} where two texts are read together, and
beside it "prompt": the name of one of the checkpoint's prompts. The rest is as in `prompts.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ConfigDict, StrictInt, StrictStr

from aiasst.artifacts.document import Document
from aiasst.engine.encode import TextInput
from aiasst.errors import ArtifactError, PromptError
from aiasst.run.prompts import BadRow, RowId, RowIds, id_in, parse_line

_ROW_HINT = 'a row is one line: {"id": "a", "text": "..."} or {"id": "a", "text": "...", "pair": "..."}'


@dataclass(frozen=True)
class TextRow:
    """A row to encode."""

    line: int
    """Counted from 1, blank lines too."""
    id: RowId
    input: TextInput


class _RowFields(Document):
    """The keys of a row; nothing is converted."""

    model_config = ConfigDict(strict=True)

    id: StrictStr | StrictInt | None = None
    text: str
    pair: str | None = None
    prompt: str | None = None


class TextReader:
    """Lines to rows, in the order of the file."""

    def __init__(self) -> None:
        self._ids = RowIds()

    def read(self, line: int, text: bytes) -> TextRow | BadRow:
        """The row in `text`. The later of two rows with the same id is a bad one."""
        row_id: RowId | None = None
        try:
            data = parse_line(line, text, _ROW_HINT)
            row_id = id_in(data, line)
            self._ids.register(line, row_id)
            fields = _RowFields.parse(data, f"line {line}")
        except ArtifactError as error:
            return BadRow(line, row_id, PromptError(error.message, _ROW_HINT))
        except PromptError as error:
            return BadRow(line, row_id, error)
        return TextRow(line, row_id, TextInput(fields.text, fields.pair, fields.prompt))
