"""Texts in, vectors or labels out: an encoder with its tokenizer around it. Knows no file and no terminal.

What comes out follows from the folder's task:

    feature-extraction, sentence-similarity    Vector
    text-classification                        Labels; of a model with one logit (a cross-encoder) Relevance
    token-classification                       TokenLabels
    fill-mask                                  Fills

Texts of like length run together under a budget of tokens, and what comes of a text does not depend on its company (padding is
masked, and activations are rounded row by row).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from aiasst.artifacts.device import DeviceConfig
from aiasst.artifacts.model_folder import ModelFolder
from aiasst.engine import heads
from aiasst.engine.batching import batches
from aiasst.engine.heads import Fills, Relevance, Result, Vector
from aiasst.errors import ArtifactError, PromptError, UsageError
from aiasst.runtime.encoder import EncoderSession
from aiasst.runtime.projection import TextVectors
from aiasst.runtime.session import settings_from
from aiasst.tokenizer import Tokenizer
from aiasst.tokenizer.inputs import EncoderInput, InputEncoder

Floats = npt.NDArray[np.float32]
Kind = Literal["vector", "labels", "relevance", "tokens", "fills"]

TOKEN_BUDGET = 2048
"""Tokens of a batch, padding included: enough rows for the products, few enough that activations stay in the caches."""
FILLS = 5
_MOST_LOGITS = 16_000_000
"""Tokens x vocabulary of a batch that fills masks (64 MB)."""
_KINDS: dict[str, Kind] = {
    "feature-extraction": "vector", "sentence-similarity": "vector", "text-classification": "labels",
    "token-classification": "tokens", "fill-mask": "fills",
}  # fmt: skip


@dataclass(frozen=True)
class TextInput:
    """A text, or two that are read together."""

    text: str
    pair: str | None = None
    prompt: str | None = None
    """Name of the prompt that goes before the text, one of the checkpoint's own; None: its default one."""


@dataclass(frozen=True)
class Prepared:
    """A text in tokens."""

    text: str
    """As the model reads it."""
    tokens: EncoderInput
    skipped: int = 0
    """Tokens at its beginning that are read and not pooled: those of a prompt that is no part of the text."""


class Encoder:
    """A model folder that embeds or classifies. `encode` is the short way; `prepare`, then `answer` is every other one.

    `remarks` are for whoever opened it: what of a device config is obeyed; none without one.

    Raises:
        ArtifactError: the folder is no encoder, lacks its tokenizer, or asks for what nobody here computes.
        ResourceError: the execution provider does not load, or memory is short.
    """

    def __init__(self, folder: ModelFolder, config: DeviceConfig, *, top: int | None = None) -> None:
        """Open `folder` as `config` says; `top` labels or fills of a text are told (None: all labels, 5 fills)."""
        task, encoding = folder.manifest.task, folder.encoding
        if task not in _KINDS:
            raise ArtifactError(
                f"{folder.path} is for {task}, which cannot be run",
                f"convert the checkpoint for one of: {', '.join(_KINDS)}, text-generation",
            )
        if encoding.beyond:
            raise ArtifactError(
                f"{folder.path} cannot be run: its files ask for {encoding.beyond}, which is not in the graph",
                "run this model with sentence-transformers",
            )
        session = EncoderSession.open(folder, settings_from(config.decisions))
        self._assemble(session, Tokenizer.load(folder.path), folder, top)

    @classmethod
    def of(cls, session: EncoderSession, tokenizer: Tokenizer, folder: ModelFolder, top: int | None = None) -> Encoder:
        """An Encoder of parts that exist already."""
        made = cls.__new__(cls)
        made._assemble(session, tokenizer, folder, top)
        return made

    def _assemble(
        self, session: EncoderSession, tokenizer: Tokenizer, folder: ModelFolder, top: int | None = None
    ) -> None:
        self.session = session
        self.tokenizer = tokenizer
        self.encoding = folder.encoding
        self.text_vectors = TextVectors.open(folder.path, self.encoding)
        self.kind: Kind = _KINDS[folder.manifest.task]
        if self.kind == "labels" and session.width == 1:
            self.kind = "relevance"
        limit = min(self.encoding.max_tokens or session.context_length, session.context_length)
        self._inputs = InputEncoder(tokenizer, limit)
        self._prompt_tokens: dict[str, int] = {}
        self._top = top
        self.remarks: tuple[str, ...] = ()
        self.name = folder.path.resolve().name
        self.identity = folder.identity
        """Hash of the model: another one, where vectors of the same texts may be others."""
        vocabulary = folder.manifest.shape.vocab_size if folder.manifest.shape is not None else 1
        self._budget = min(TOKEN_BUDGET, _MOST_LOGITS // vocabulary) if self.kind == "fills" else TOKEN_BUDGET
        mask = tokenizer.special_tokens.get("mask_token")
        self._mask_id = None if mask is None else tokenizer.backend.token_to_id(mask)

    @property
    def max_tokens(self) -> int:
        """Tokens of a text that are read; what is longer is cut, and `Prepared.tokens` tells it."""
        return self._inputs.longest

    def prompt_among(self, names: Sequence[str]) -> str | None:
        """The first of these prompts that the checkpoint has; None: its default one serves."""
        return next((name for name in names if name in self.encoding.prompts), None)

    def prepare(self, inputs: Sequence[TextInput]) -> list[Prepared | PromptError]:
        """Texts in tokens; in the place of one that this model cannot read, the reason."""
        refusals = [self._refusal(given) for given in inputs]
        good = [given for given, refused in zip(inputs, refusals, strict=True) if refused is None]
        texts = [self.encoding.prompted(given.text, given.prompt) for given in good]
        pairs: list[str | tuple[str, str]] = [
            text if g.pair is None else (text, g.pair) for text, g in zip(texts, good, strict=True)
        ]
        skipped = [self._skipped(given.prompt) for given in good]
        encoded = iter(zip(texts, self._inputs.encode(pairs), skipped, strict=True))
        return [self._checked(*next(encoded)) if refused is None else refused for refused in refusals]

    def _skipped(self, prompt: str | None) -> int:
        """How many tokens of a text belong to its prompt and are not pooled, what the tokenizer puts before it included."""
        text = self.encoding.prompt_text(prompt)
        if self.encoding.pools_prompt or not text:
            return 0
        if text not in self._prompt_tokens:
            text_alone = text.strip() if self.encoding.strip else text
            alone = self._inputs.encode([text_alone.lower() if self.encoding.lower_case else text_alone])[0]
            self._prompt_tokens[text] = len(alone.ids) - bool(alone.special and alone.special[-1])
        return self._prompt_tokens[text]

    def _refusal(self, given: TextInput) -> PromptError | None:
        if given.prompt is not None and given.prompt not in self.encoding.prompts:
            known = ", ".join(self.encoding.prompts)
            return PromptError(
                f"this model has no prompt '{given.prompt}'", f"its prompts are {known}" if known else "leave it out"
            )
        if given.pair is not None and self.kind in ("tokens", "fills", "vector"):
            return PromptError("this model reads one text, not a pair", "give every text a row of its own")
        return None

    def _checked(self, text: str, tokens: EncoderInput, skipped: int) -> Prepared | PromptError:
        if len(tokens.ids) == 0:
            return PromptError("the text is empty", "write at least one word")
        if self.kind == "fills" and not self._masks(tokens):
            cut = " in the tokens that are read" if tokens.is_cut else ""
            name = self.tokenizer.special_tokens.get("mask_token", "(it has none)")
            return PromptError(f"the text has no mask{cut}", f"write {name} where a token is to be found")
        # A text that is nothing but its prompt is pooled over its last token.
        return Prepared(text, tokens, min(skipped, len(tokens.ids) - 1))

    def answer(self, prepared: Sequence[Prepared]) -> list[Result]:
        """What the model makes of texts, in their order.

        Raises:
            ArtifactError: the graph fails.
            ResourceError: memory is short.
        """
        found: dict[int, Result] = {}
        for batch in batches([len(each.tokens.ids) for each in prepared], self._budget):
            rows = [prepared[index] for index in batch]
            found |= zip(batch, self._run(rows), strict=True)
        return [found[index] for index in range(len(prepared))]

    def encode(self, texts: Sequence[str], *, prompt: str | None = None) -> Floats:
        """The vectors of texts, float32 [texts, size]; texts longer than `max_tokens` are cut.

        >>> load("minilm").encode(["A cat sleeps.", "Interest rates rose."]).shape
        (2, 384)

        Raises:
            UsageError: the model makes no vectors.
            PromptError: there is no such prompt.
        """
        self._must_be("vector", "makes no vectors")
        results = self.answer(self._all([TextInput(text, prompt=prompt) for text in texts]))
        rows = [result.values for result in results if isinstance(result, Vector)]
        return np.stack(rows) if rows else np.zeros((0, 0), np.float32)

    def relevance(self, query: str, texts: Sequence[str]) -> list[float]:
        """How well each text answers the query, by a cross-encoder.

        Raises:
            UsageError: the model is none.
        """
        self._must_be("relevance", "is no cross-encoder")
        results = self.answer(self._all([TextInput(query, text) for text in texts]))
        return [result.score for result in results if isinstance(result, Relevance)]

    def _must_be(self, kind: Kind, otherwise: str) -> None:
        if self.kind != kind:
            raise UsageError(f"this model {otherwise}", "use `prepare` and `answer`, or another model")

    def _all(self, inputs: Sequence[TextInput]) -> list[Prepared]:
        """The texts in tokens. Raises the first PromptError."""
        good: list[Prepared] = []
        for made in self.prepare(inputs):
            if isinstance(made, PromptError):
                raise made
            good.append(made)
        return good

    def _run(self, rows: Sequence[Prepared]) -> list[Result]:
        output, mask = self.session.run([row.tokens.ids for row in rows], [row.tokens.types for row in rows])
        if not np.isfinite(output[mask > 0] if output.ndim == 3 else output).all():
            raise ArtifactError(
                "the model's answers are no numbers", "convert, or quantize, it again; or take the original"
            )
        if self.kind == "vector":
            for index, row in enumerate(rows):
                mask[index, : row.skipped] = 0
            return list(heads.vectors(output, mask, self.text_vectors))
        if self.kind == "relevance":
            return list(heads.relevance(output, self.encoding))
        if self.kind == "labels":
            return list(heads.labels(output, self.encoding, self._top))
        return [self._by_token(row, output[index, : len(row.tokens.ids)]) for index, row in enumerate(rows)]

    def _by_token(self, row: Prepared, logits: Floats) -> Result:
        if self.kind == "tokens":
            return heads.token_labels(logits, row.tokens.offsets, row.tokens.special, row.text, self.encoding)
        masks = self._masks(row.tokens)
        return Fills(tuple(heads.fills(logits[place], self._word, self._top or FILLS) for place in masks))

    def _masks(self, tokens: EncoderInput) -> list[int]:
        places: list[int] = np.flatnonzero(tokens.ids == self._mask_id).tolist() if self._mask_id is not None else []
        return places

    def _word(self, token: int) -> str:
        text: str = self.tokenizer.backend.decode([token], skip_special_tokens=False)
        return text
