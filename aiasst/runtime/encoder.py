"""An encoder of text that runs: rows of ids in, hidden states or logits out. Knows no tokenizer and no meaning of its answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from aiasst.artifacts import signature
from aiasst.artifacts.model_folder import ModelFolder
from aiasst.errors import ArtifactError
from aiasst.runtime.session import GraphSession
from aiasst.runtime.settings import SessionSettings

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

_KNOWN = {signature.INPUT_IDS, signature.ATTENTION_MASK, signature.TOKEN_TYPE_IDS}


class EncoderSession:
    """An open encoder. Runs of one session do not disturb each other."""

    def __init__(self, graph: GraphSession, *, context_length: int, pad_id: int = 0) -> None:
        """Wrap an open graph; `pad_id` fills rows up (some models find positions by it)."""
        self.graph = graph
        self.context_length = context_length
        self._pad_id = pad_id
        names = graph.output_names
        self._output = next(
            (name for name in (signature.LAST_HIDDEN_STATE, signature.LOGITS) if name in names), names[0]
        )

    @classmethod
    def open(cls, folder: ModelFolder, settings: SessionSettings | None = None) -> EncoderSession:
        """Open the encoder of a model folder.

        Raises:
            ArtifactError: it is no encoder of text, or the graph is damaged.
            ResourceError: the execution provider does not load, or memory is short.
        """
        shape = folder.manifest.shape
        if shape is None:
            raise ArtifactError(
                f"{folder.path} holds a foreign graph, no encoder of text", "convert a checkpoint first"
            )
        graph = GraphSession.open(folder.graph, settings)
        if foreign := set(graph.input_names) - _KNOWN:
            raise ArtifactError(
                f"{folder.path} wants more than a text: {', '.join(sorted(foreign))}", "use an encoder of text"
            )
        return cls(graph, context_length=shape.context_length, pad_id=folder.manifest.tokens.pad or 0)

    @property
    def width(self) -> int | str | None:
        """Size of a hidden state, or number of labels; a name or None where the graph does not tell it."""
        return self.graph.output_shape(self._output)[-1]

    def run(self, rows: Sequence[Ids], types: Sequence[Ids] | None = None) -> tuple[Floats, Floats]:
        """Run texts together, the shorter ones padded behind their end.

        Args:
            rows: int64 [tokens] each, at least one token.
            types: which of two texts each token is of, shaped like `rows`; None: of the first.

        Returns:
            float32 [texts, tokens, size], or [texts, labels]; and the mask float32 [texts, tokens].

        Raises:
            ArtifactError: the graph fails.
            ResourceError: memory is short.
        """
        lengths = np.asarray([len(row) for row in rows])
        kept = np.arange(lengths.max()) < lengths[:, None]
        feeds = {
            signature.INPUT_IDS: np.full(kept.shape, self._pad_id, np.int64),
            signature.ATTENTION_MASK: kept.astype(np.int64),
            signature.TOKEN_TYPE_IDS: np.zeros(kept.shape, np.int64),
        }
        feeds[signature.INPUT_IDS][kept] = np.concatenate(list(rows))
        if types is not None:
            feeds[signature.TOKEN_TYPE_IDS][kept] = np.concatenate(list(types))
        answer = self.graph.run({name: feeds[name] for name in self.graph.input_names}, [self._output])[0]
        return answer.astype(np.float32, copy=False), kept.astype(np.float32)
