"""A stream of ids into pieces of text, never half a character. Knows nothing of where the ids come from.

Decoding is no function of one id: a character may span several (byte-level BPE, byte fallback), and a SentencePiece
decoder drops the space before the first word only. So a piece is the difference of two decodings that begin at the same
id: the ids shown last, and those with the new ones behind them.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tokenizers

_REPLACEMENT = "\ufffd"
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class Detokenizer:
    """Decoder of one stream: the pieces together are what decoding all ids at once gives."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        self._special = frozenset(i for i, token in backend.get_added_tokens_decoder().items() if token.special)
        self._byte_fallback = '"ByteFallback"' in json.dumps(json.loads(backend.to_str())["decoder"])
        self._shown: list[int] = []
        self._new: list[int] = []

    def fresh(self) -> Detokenizer:
        """A decoder for another stream; what is asked of the tokenizer, which takes long for a large one, is asked once."""
        other = Detokenizer.__new__(Detokenizer)
        other._backend, other._special, other._byte_fallback = self._backend, self._special, self._byte_fallback
        other._shown, other._new = [], []
        return other

    def feed(self, token: int) -> str:
        """The text that has become certain with `token`; empty while a character is not complete."""
        if token in self._special:  # says nothing, and must not stand between two words either
            return ""
        self._new.append(token)
        piece = self._difference()
        return "" if piece.endswith(_REPLACEMENT) or self._may_go_on(token) else self._show(piece)

    def flush(self) -> str:
        """What is still held back when the stream ends: half a character shows as the replacement character."""
        return self._show(self._difference()) if self._new else ""

    def _difference(self) -> str:
        before: str = self._backend.decode(self._shown)
        after: str = self._backend.decode(self._shown + self._new)
        return after[len(before) :]

    def _show(self, piece: str) -> str:
        self._shown, self._new = self._new, []
        return piece

    def _may_go_on(self, token: int) -> bool:
        # A run of byte tokens is decoded as a whole: one wrong byte at its end changes what its beginning shows.
        return self._byte_fallback and _BYTE_TOKEN.fullmatch(self._backend.id_to_token(token) or "") is not None
