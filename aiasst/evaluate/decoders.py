"""What a card says of a decoder: how it predicts a text, alone or beside its original. Knows no file but the text's."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aiasst.artifacts.card import FormScores, MeasuredText, PairScores, bits_of_both
from aiasst.artifacts.model_folder import ModelFolder, disk_errors
from aiasst.errors import ArtifactError, UsageError
from aiasst.evaluate.fitness import finite, refuse_unmeasurable
from aiasst.evaluate.pair import ContinuingScorer, KeepingScorer, KeptContexts
from aiasst.evaluate.perplexity import WINDOW, Comparison, DecoderScorer, Scorer, compare_all, perplexity
from aiasst.evaluate.texts import DEFAULT_TOKENS, EvaluationText, held_out_path, read_text
from aiasst.progress import ProgressFn, silent
from aiasst.runtime.session import DecoderSession, SessionSettings
from aiasst.tokenizer import Tokenizer

Ids = npt.NDArray[np.int64]

_LEAST_WINDOW = 8
_NO_ROOM = "free some space there, or name another place for temporary files (TMPDIR)"


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
    work: Path | None = None,
) -> dict[str, Any]:
    """Fields of the card: predictions of `folder` on the windows, beside those of `against` where there is one.

    Of a folder of two forms, those of the first, and as `pair` those of both together; the second is opened before the first, and
    its caches wait in a folder that is made for them in `work` (None: where the system has temporary files).

    Raises:
        ArtifactError: a graph fails, or answers with what are no numbers.
        UsageError: the vocabularies differ.
        ResourceError: the execution provider does not load, or memory is short.
    """
    measuring = _Measuring(folder, windows, progress)
    reference = _reference(against, settings) if isinstance(against, ModelFolder) else against
    text = MeasuredText(
        name=windows.text.name,
        shipped=windows.shipped,
        tokens=len(windows.text.ids),
        passages=len(windows.ids),
        window=windows.length,
        # The logits of a window's second half are compared, whoever gives them.
        scored=len(windows.ids) * (windows.length - windows.length // 2),
        sha256=windows.text.sha256,
    )
    if folder.manifest.twin is None:
        session = DecoderSession.open(folder, settings)
        return measuring.scores(reference, [DecoderScorer(session)])[0] | {"text": text}
    with tempfile.TemporaryDirectory(prefix="aiasst-", dir=work) as place, disk_errors(Path(place), _NO_ROOM):
        contexts = KeptContexts(Path(place))
        # One form in memory at a time.
        reader = KeepingScorer(DecoderSession.open(folder, settings, twin=True), contexts)
        (twin,) = measuring.scores(reference, [reader])
        del reader
        session = DecoderSession.open(folder, settings)
        first, both = measuring.scores(reference, [DecoderScorer(session), ContinuingScorer(session, contexts)])
    pair = PairScores(
        **_of_form(both),
        twin=FormScores(**_of_form(twin)),
        bytes=folder.weight_bytes + folder.twin_bytes,
        bits_per_weight=bits_of_both(folder.manifest),
    )
    return first | {"pair": pair, "text": text}


@dataclass(frozen=True)
class _Measuring:
    """What is measured, whichever form answers."""

    folder: ModelFolder
    windows: Windows
    progress: ProgressFn

    def scores(self, reference: Scorer | None, scorers: Sequence[Scorer]) -> list[dict[str, Any]]:
        """Fields of a card for each of `scorers`, beside the reference where there is one."""
        ids, length = self.windows.text.ids, self.windows.length
        if reference is None:
            alone = (perplexity(scorer, ids, window=length, progress=self.progress) for scorer in scorers)
            return [
                {"perplexity_after": finite(one.value, self.folder), "accuracy_after": one.accuracy} for one in alone
            ]
        compared = compare_all(reference, scorers, ids, window=length, progress=self.progress)
        return [self._compared(one) for one in compared]

    def _compared(self, both: Comparison) -> dict[str, Any]:
        return {
            "perplexity_before": both.reference.value,
            "perplexity_after": both.other.value,
            # Rounding makes the divergence of a model from itself -1e-17.
            "kl_mean": max(0.0, finite(both.mean_kl, self.folder)),
            "kl_p999": max(0.0, both.kl_p999),
            "kl_max": max(0.0, both.max_kl),
            "top1_agreement": both.top1_agreement,
            "accuracy_before": both.reference.accuracy,
            "accuracy_after": both.other.accuracy,
            "retained_percent": both.retained_percent,
        }


def _of_form(found: dict[str, Any]) -> dict[str, Any]:
    """Those of the fields that a form has, and not the original."""
    return {name: value for name, value in found.items() if not name.endswith("_before")}


def _reference(folder: ModelFolder, settings: SessionSettings) -> DecoderScorer:
    # The float original runs through once: its weights stay mapped, and no second copy of them is made.
    if folder.manifest.quantization is None:
        settings = replace(settings, prepack=False)
    return DecoderScorer(DecoderSession.open(folder, settings))
