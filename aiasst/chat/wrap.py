"""Lines broken between words while the text is still coming. Knows no terminal but its width."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

_PIECES = re.compile(r"\n|[^\S\n]+|\S+")


class WordWrap:
    """Holds the word that is being written until it is complete, and begins a new line where it does not fit.

    `width` gives the columns; it is asked again for every word, because windows change.
    """

    def __init__(self, width: Callable[[], int]) -> None:
        self._width = width
        self._word = ""
        self._spaces = ""
        self._column = 0

    def feed(self, text: str) -> str:
        """What may be shown now."""
        shown = ""
        for piece in _PIECES.findall(text):
            if not piece.isspace():
                shown += self._letters(piece)
                continue
            shown += self.flush()
            if piece == "\n":
                self._spaces, self._column = "", 0
                shown += "\n"
            else:
                self._spaces += piece
        return shown

    def flush(self) -> str:
        """The word that was held, when the text ends."""
        word, self._word = self._word, ""
        if not word:
            return ""
        spaces, self._spaces = self._spaces, ""
        columns = _columns(word)
        if self._column and self._column + len(spaces) + columns > self._width():
            self._column = columns
            return "\n" + word
        self._column += len(spaces) + columns
        return spaces + word

    def _letters(self, piece: str) -> str:
        """Add to the word; scripts that write without spaces (wide characters) may break at each of theirs."""
        shown = ""
        for character in piece:
            if _columns(character) == 2:
                shown += self.flush()
                self._word = character
                shown += self.flush()
            else:
                self._word += character
        return shown


def _columns(text: str) -> int:
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
