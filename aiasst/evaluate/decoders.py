"""What a card says of a decoder: how it predicts a text, alone or beside its original. Knows no file but the text's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aiasst.artifacts.card import MeasuredText
from aiasst.artifacts.model_folder import ModelFolder
from aiasst.errors import ArtifactError, UsageError
from aiasst.evaluate.fitness import finite, refuse_unmeasurable
from aiasst.evaluate.perplexity import WINDOW, DecoderScorer, Scorer, compare, perplexity
from aiasst.evaluate.texts import DEFAULT_TOKENS, EvaluationText, held_out_path, read_text
from aiasst.progress import ProgressFn, silent
from aiasst.runtime.session import DecoderSession, SessionSettings
from aiasst.tokenizer import Tokenizer

Ids = npt.NDArray[np.int64]

_LEAST_WINDOW = 8


@dataclass(frozen=True)
class Windows:
    """What a decoder is measured on: the first tokens of a text, in windows that do not overlap."""

    text: EvaluationText
    """Its ids fill the windows without a rest."""
    length: int
    shipped: bool

    @property
    def ids(self) -> Ids:
        """int64 [windows, length]"""
        return self.text.ids.reshape(-1, self.length)


def prepare_windows(folder: ModelFolder, text: Path | None = None, tokens: int | None = None) -> Windows:
    """The windows that `measure_card` measures a decoder on.

    Args:
        folder: whose tokenizer and context they are for.
        text: a text file; None: the held-out text that comes with the program.
        tokens: most tokens that are read; None: DEFAULT_TOKENS. A text is read as far as it fills whole windows.

    Raises:
        ArtifactError: the file is no text, or the tokenizer has ids that the model has not.
        UsageError: the text has not the tokens of one window.
    """
    shape = folder.manifest.shape
    refuse_unmeasurable(folder)
    assert shape is not None
    wanted = DEFAULT_TOKENS if tokens is None else tokens
    length = min(WINDOW, shape.context_length, wanted)
    if length < _LEAST_WINDOW:
        raise UsageError(
            f"{wanted} tokens are too few to measure on", f"give {WINDOW} or more: --tokens {DEFAULT_TOKENS}"
        )
    found = read_text(text or held_out_path(), Tokenizer.load(folder.path), wanted)
    if len(found.ids) < length:
        raise UsageError(
            f"the text {found.name} has {len(found.ids)} tokens, and one window needs {length}", "give a longer text"
        )
    if found.ids.max() >= shape.vocab_size:
        raise ArtifactError(
            f"the tokenizer of {folder.path} knows the id {found.ids.max()}, the model has {shape.vocab_size} tokens",
            "convert the checkpoint again, with its own tokenizer",
        )
    whole = found.ids[: len(found.ids) // length * length]
    return Windows(EvaluationText(found.name, whole), length, shipped=text is None)


def measure_decoder(
    folder: ModelFolder,
    against: ModelFolder | Scorer | None,
    windows: Windows,
    settings: SessionSettings,
    progress: ProgressFn = silent,
) -> dict[str, Any]:
    """Fields of the card: predictions of `folder` on the windows, beside those of `against` where there is one.

    Raises:
        ArtifactError: a graph fails, or answers with what are no numbers.
        UsageError: the vocabularies differ.
        ResourceError: the execution provider does not load, or memory is short.
    """
    ids, length = windows.text.ids, windows.length
    scorer = DecoderScorer(DecoderSession.open(folder, settings))
    if against is None:
        alone = perplexity(scorer, ids, window=length, progress=progress)
        found: dict[str, Any] = {
            "perplexity_after": finite(alone.value, folder),
            "accuracy_after": alone.accuracy,
        }
        scored = alone.tokens
    else:
        reference = _reference(against, settings) if isinstance(against, ModelFolder) else against
        both = compare(reference, scorer, ids, window=length, progress=progress)
        scored = both.tokens
        found = {
            "perplexity_before": both.reference.value,
            "perplexity_after": both.other.value,
            # Rounding makes the divergence of a model from itself -1e-17.
            "kl_mean": max(0.0, finite(both.mean_kl, folder)),
            "kl_p999": max(0.0, both.kl_p999),
            "kl_max": max(0.0, both.max_kl),
            "top1_agreement": both.top1_agreement,
            "accuracy_before": both.reference.accuracy,
            "accuracy_after": both.other.accuracy,
            "retained_percent": both.retained_percent,
        }
    text = MeasuredText(
        name=windows.text.name,
        shipped=windows.shipped,
        tokens=len(ids),
        passages=len(ids) // length,
        window=length,
        scored=scored,
        sha256=windows.text.sha256,
    )
    return found | {"text": text}


def _reference(folder: ModelFolder, settings: SessionSettings) -> DecoderScorer:
    # The float original runs through once: its weights stay mapped, and no second copy of them is made.
    if folder.manifest.quantization is None:
        settings = replace(settings, prepack=False)
    return DecoderScorer(DecoderSession.open(folder, settings))
