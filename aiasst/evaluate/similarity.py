"""The vectors that an encoder makes of texts, and how near they are to another's. Knows no task and writes nothing.

A text's vector is what the checkpoint says it is: the hidden states of its tokens, pooled and normalized as the folder's
`encoding` declares. A classifier's vector is its logits. Texts are run one at a time, so that nothing but the text decides.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from aiasst.artifacts.encoding import Encoding
from aiasst.artifacts.model_folder import ModelFolder
from aiasst.progress import Progress, ProgressFn, silent
from aiasst.runtime.encoder import EncoderSession
from aiasst.runtime.projection import TextVectors
from aiasst.runtime.session import SessionSettings
from aiasst.tokenizer import Tokenizer
from aiasst.tokenizer.inputs import EncoderInput, InputEncoder

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Text = str | tuple[str, str]
"""A text, or two that are read together."""


class TextEncoder:
    """An encoder that turns texts into vectors."""

    def __init__(
        self, session: EncoderSession, tokenizer: Tokenizer, encoding: Encoding, made: TextVectors | None = None
    ) -> None:
        self.session = session
        self.encoding = encoding
        self._made = made or TextVectors(encoding)
        longest = min(encoding.max_tokens or session.context_length, session.context_length)
        self._inputs = InputEncoder(tokenizer, longest)
        self._known: dict[bytes, Floats] = {}

    @classmethod
    def open(cls, folder: ModelFolder, settings: SessionSettings | None = None) -> TextEncoder:
        """Open the encoder of a model folder.

        Raises:
            ArtifactError: it is no encoder of text, or has no tokenizer.
            ResourceError: the execution provider does not load, or memory is short.
        """
        encoding = folder.encoding
        made = TextVectors.open(folder.path, encoding)
        return cls(EncoderSession.open(folder, settings), Tokenizer.load(folder.path), encoding, made)

    def encode(self, text: Text) -> EncoderInput:
        """`text` in tokens, cut to what the model reads; special tokens stay."""
        prompted = self.encoding.prompted
        whole = prompted(text) if isinstance(text, str) else (prompted(text[0]), text[1])
        return self._inputs.encode([whole])[0]

    def vector(self, text: EncoderInput) -> Floats:
        """The vector of one text, float32 [size]: pooled hidden states, or logits as they are.

        Raises:
            ArtifactError: the graph fails.
        """
        states, mask = self.session.run([text.ids], [text.types])
        vector: Floats = (states if states.ndim == 2 else self._made(states, mask))[0]
        return vector

    def vectors(
        self, texts: Sequence[EncoderInput], progress: ProgressFn = silent, stage: str = "evaluate"
    ) -> list[Floats]:
        """The vectors of many texts; a text that was met before is not run again."""
        found: list[Floats] = []
        for index, text in enumerate(texts):
            progress(Progress(stage, index, len(texts)))
            key = text.ids.tobytes() + text.types.tobytes()
            if key not in self._known:
                self._known[key] = self.vector(text)
            found.append(self._known[key])
        progress(Progress(stage, len(texts), len(texts)))
        return found


def cosines(first: Sequence[Floats], second: Sequence[Floats]) -> Doubles:
    """Cosine of each pair of vectors, float64 [texts]; two vectors of zeros are the same, one is unlike everything."""
    found = []
    for a, b in zip(first, second, strict=True):
        wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
        lengths = float(np.linalg.norm(wide_a) * np.linalg.norm(wide_b))
        found.append(float(wide_a @ wide_b) / lengths if lengths else float(not wide_a.any() and not wide_b.any()))
    return np.clip(np.asarray(found, np.float64), -1.0, 1.0)
